"""Power basis (Giraffe): f_m (1 - m / (d/2))^k, so slow pairs turn more slowly still and fast ones hardly change.

Learned: nothing. Claimed: made for extrapolation, with fine-tuning; linear scaling turned out the more robust (Pal et
al. 2023). Their order is linear, then power, then truncation: ``Truncated(Power(Linear(4.0)))``.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.position.scaling.base import Changed


@dataclasses.dataclass(frozen=True)
class Power(Changed):
    """A factor that falls from 1 for the fastest pair to (2 / d)^k for the slowest.

    Attributes:
      inner: the scaling whose frequencies are changed, or None.
      exponent: k; Giraffe has 0.1 and 0.5.
    """

    paper: ClassVar[str] = "Pal et al. 2023, Giraffe: Adventures in Expanding Context Lengths in LLMs"

    exponent: float = 0.5

    def check(self) -> None:
        require(self.exponent >= 0, f"Power.exponent: expected a number >= 0, got {self.exponent}")

    def change(self, frequencies: jax.Array) -> jax.Array:
        pairs = frequencies.shape[-1]
        return frequencies * (1 - jnp.arange(pairs, dtype=jnp.float32) / pairs) ** self.exponent
