"""Truncated basis (Giraffe): pairs that turn over T tokens at least once are kept, slower ones turn evenly or not.

    f >= 2 pi / T          f
    f >= 2 pi / (8 T)      2 pi / (16 T)
    below                  0

So all distances a slow pair can show were seen in training. Learned: nothing. Claimed: good perplexity at length, poor
retrieval (Pal et al. 2023).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.position.scaling.base import Changed, check_original


@dataclasses.dataclass(frozen=True)
class Truncated(Changed):
    """Three ranges of frequencies.

    Attributes:
      inner: the scaling whose frequencies are changed, or None.
      original: T, the length of training.
    """

    paper: ClassVar[str] = "Pal et al. 2023, Giraffe: Adventures in Expanding Context Lengths in LLMs"

    original: int = 2048

    def check(self) -> None:
        check_original("Truncated.original", self.original)

    def change(self, frequencies: jax.Array) -> jax.Array:
        once = 2 * math.pi / self.original
        slow = jnp.where(frequencies >= once / 8, once / 16, 0.0)
        return jnp.where(frequencies >= once, frequencies, slow)
