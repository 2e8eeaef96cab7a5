"""Dynamic NTK (bloc97, emozilla 2023): the base grows with the context n, b' = b (s n / L - (s - 1))^(d / (d - 2)).

Learned: nothing. Claimed: no fine-tuning, and nothing changes up to the training length L. While the context grows, all
cached keys are seen under the current frequencies; they are kept un-rotated for that.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.types import Params, RotaryScaling
from jaxlm.ops.rotary import inverse_frequencies
from jaxlm.position.scaling.base import check_factor, check_original


@dataclasses.dataclass(frozen=True)
class Dynamic(RotaryScaling):
    """NTK-aware scaling for the length at hand.

    Attributes:
      factor: s; 2 makes b' the static NTK base for a context of 2 n / L - 1 times the training length.
      original: L, the length of training.
    """

    paper: ClassVar[str] = "emozilla 2023, Dynamically Scaled RoPE; Peng et al. 2023, YaRN (section 3.3)"
    by_length: ClassVar[bool] = True

    factor: float = 2.0
    original: int = 2048

    def check(self) -> None:
        check_factor("Dynamic.factor", self.factor)
        check_original("Dynamic.original", self.original)

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        require(width > 2, f"dynamic rotary scaling needs more than 2 rotated channels, got {width}")
        now = jnp.maximum(jnp.asarray(0 if length is None else length, jnp.float32), self.original)
        growth = self.factor * now / self.original - (self.factor - 1)
        return inverse_frequencies(base * growth ** (width / (width - 2)), width)
