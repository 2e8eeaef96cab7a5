"""Proportional rotary: the fastest share of the pairs turns, with exponents over the full width; the rest stand still.

Unlike a rotary on part of the head, frequencies are those of the whole head and the still pairs are the slow ones.
Learned: nothing. From transformers' rope type of this name (Gemma 3n and later).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.types import Params, RotaryScaling
from jaxlm.ops.rotary import inverse_frequencies
from jaxlm.position.scaling.base import check_factor


@dataclasses.dataclass(frozen=True)
class Proportional(RotaryScaling):
    """A share of the pairs, fastest first.

    Attributes:
      proportion: of the head's pairs that turn.
      factor: divides all frequencies.
    """

    paper: ClassVar[str] = "the rope type of this name in transformers 5 (Gemma team)"

    proportion: float = 1.0
    factor: float = 1.0

    def check(self) -> None:
        require(
            0 < self.proportion <= 1,
            f"Proportional.proportion: expected a number in (0, 1], got {self.proportion}",
        )
        check_factor("Proportional.factor", self.factor)

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        turning = int(self.proportion * width // 2)
        still = jnp.arange(width // 2) >= turning
        return jnp.where(still, 0.0, inverse_frequencies(base, width) / self.factor)
