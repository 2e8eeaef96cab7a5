"""LongRoPE: each pair's frequency divided by a searched number of its own; one list up to L, another beyond it.

cos and sin are multiplied by sqrt(1 + ln(s) / ln(L)) in both regimes. Learned: nothing (the lists come from a search).
Claimed: contexts beyond two million tokens (Ding et al. 2024). As in transformers, the long list is used as soon as the
sequence exceeds L; cached keys are kept un-rotated and seen under the current list.
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
class LongRope(RotaryScaling):
    """Two lists of divisors.

    Attributes:
      short, long: a divisor for each rotated pair, up to and beyond ``original`` tokens; empty for ones.
      factor: s, longer context over that of training.
      original: L, the length of training.
      attention: factor of cos and sin; 0 for the rule above.
    """

    paper: ClassVar[str] = "Ding et al. 2024, LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens"
    by_length: ClassVar[bool] = True

    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    factor: float = 1.0
    original: int = 4096
    attention: float = 0.0

    def check(self) -> None:
        check_factor("LongRope.factor", self.factor)
        check_original("LongRope.original", self.original)
        require(self.attention >= 0, f"LongRope.attention: expected a number >= 0, got {self.attention}")
        require(min((*self.short, *self.long, 1.0)) > 0, "LongRope: expected positive divisors in short and long")

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        for name, divisors in (("short", self.short), ("long", self.long)):
            require(
                len(divisors) in (0, width // 2),
                f"LongRope.{name}: expected {width // 2} divisors for {width} rotated channels, got {len(divisors)}",
            )
        short, long = (jnp.asarray(x or (1.0,) * (width // 2), jnp.float32) for x in (self.short, self.long))
        beyond = jnp.asarray(0 if length is None else length)[..., None] > self.original
        return inverse_frequencies(base, width) / jnp.where(beyond, long, short)

    def amplitude(self) -> float:
        if self.attention:
            return self.attention
        return 1.0 if self.factor <= 1 else math.sqrt(1 + math.log(self.factor) / math.log(self.original))
