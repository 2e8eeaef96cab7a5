"""Llama 3.1's rule: long wavelengths divided by a factor, short ones kept, a linear blend of frequencies between.

Learned: nothing. Claimed: 128k tokens from 8k of pre-training, with long-context training on top (Llama team 2024).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.types import Params, RotaryScaling
from jaxlm.ops.rotary import inverse_frequencies
from jaxlm.position.scaling.base import check_factor, check_original


@dataclasses.dataclass(frozen=True)
class Llama3(RotaryScaling):
    """Wavelengths above original / low are divided by ``factor``, those below original / high are kept.

    Attributes:
      factor: of the slowest pairs.
      low, high: turns over ``original`` tokens at the two ends of the blend.
      original: the length of training.
    """

    paper: ClassVar[str] = "Llama team 2024, The Llama 3 Herd of Models"

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def check(self) -> None:
        check_factor("Llama3.factor", self.factor)
        check_original("Llama3.original", self.original)
        require(0 < self.low < self.high, f"Llama3: expected 0 < low < high, got {self.low} and {self.high}")

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        plain = inverse_frequencies(base, width)
        turns = self.original * plain / (2 * math.pi)
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (1 - kept) * plain / self.factor + kept * plain
