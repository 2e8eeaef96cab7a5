"""NTK-aware scaling (bloc97 2023): the base becomes b' = b alpha^(d / (d - 2)), so the slowest pair is interpolated by
alpha and the fastest one stays as it is.

alpha is the longer context over that of training, s; or 2 s - 1, the curve of dynamic scaling with factor 2 and the one
CLEX starts from. Learned: nothing. Claimed: twice the context and more without any fine-tuning. In config.json it is
nothing but a larger theta.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxlm.core.config import require
from jaxlm.core.types import Params, RotaryScaling
from jaxlm.ops.rotary import inverse_frequencies
from jaxlm.position.scaling.base import check_factor


@dataclasses.dataclass(frozen=True)
class Ntk(RotaryScaling):
    """A larger base.

    Attributes:
      factor: s, longer context over that of training.
      alpha: growth of the base to the power d / (d - 2); 0 for s.
    """

    paper: ClassVar[str] = "bloc97 2023, NTK-Aware Scaled RoPE; Peng et al. 2023, YaRN (section 3.1)"

    factor: float = 1.0
    alpha: float = 0.0

    def check(self) -> None:
        if self.alpha:
            check_factor("Ntk.alpha", self.alpha)
            require(self.factor == 1, f"Ntk: expected factor or alpha, got {self.factor} and {self.alpha}")
        else:
            check_factor("Ntk.factor", self.factor)

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        require(width > 2, f"NTK scaling needs more than 2 rotated channels, got {width}")
        return inverse_frequencies(base * (self.alpha or self.factor) ** (width / (width - 2)), width)
