"""Position interpolation: every frequency divided by one factor, as if positions were (Chen et al. 2023; kaiokendev).

Learned: nothing. Claimed: stable after a short fine-tuning at the longer length; without it all positions suffer.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxlm.core.types import Params, RotaryScaling
from jaxlm.ops.rotary import inverse_frequencies
from jaxlm.position.scaling.base import check_factor


@dataclasses.dataclass(frozen=True)
class Linear(RotaryScaling):
    """f_m / factor.

    Attributes:
      factor: longer context over that of training.
    """

    paper: ClassVar[str] = "Chen et al. 2023, Extending Context Window of LLMs via Positional Interpolation"

    factor: float = 1.0

    def check(self) -> None:
        check_factor("Linear.factor", self.factor)

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        return inverse_frequencies(base, width) / self.factor
