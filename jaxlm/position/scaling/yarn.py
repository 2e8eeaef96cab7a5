"""YaRN: fast pairs keep their frequency, slow ones are interpolated, with a ramp between (Peng et al. 2023).

A pair that turns more than beta_fast times over the training length L is left alone, one that turns less than beta_slow
times is divided by the factor s. cos and sin are multiplied by 0.1 ln(s) + 1, so logits by its square.
Learned: nothing. Claimed: longer contexts with little or no fine-tuning.
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


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln(factor) + 1, or 1 where nothing is extended."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclasses.dataclass(frozen=True)
class Yarn(RotaryScaling):
    """Yet another RoPE extension.

    Attributes:
      factor: s, longer context over that of training.
      original: L, the length of training.
      beta_fast, beta_slow: turns over L at the two ends of the ramp.
      truncate: round the ends of the ramp outwards to whole pairs (GPT-OSS does not).
      attention: factor of cos and sin; 0 for the rule above, or below where both mscales are given.
      mscale, mscale_all: if neither is 0, the factor is their magnitudes' ratio (DeepSeek-V2).
    """

    paper: ClassVar[str] = "Peng et al. 2023, YaRN: Efficient Context Window Extension of Large Language Models"

    factor: float = 1.0
    original: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention: float = 0.0
    mscale: float = 0.0
    mscale_all: float = 0.0

    def check(self) -> None:
        check_factor("Yarn.factor", self.factor)
        check_original("Yarn.original", self.original)
        require(self.attention >= 0, f"Yarn.attention: expected a number >= 0, got {self.attention}")
        require(
            0 < self.beta_slow <= self.beta_fast,
            f"Yarn: expected 0 < beta_slow <= beta_fast, got {self.beta_slow} and {self.beta_fast}",
        )

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        plain = inverse_frequencies(base, width)

        def pair_that_turns(times: float) -> jax.Array:
            return width * math.log(self.original / (times * 2 * math.pi)) / (2 * jnp.log(base))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = jnp.floor(low), jnp.ceil(high)
        low, high = jnp.maximum(low, 0), jnp.minimum(high, width - 1)
        high = jnp.where(low == high, high + 0.001, high)
        ramp = jnp.clip((jnp.arange(width // 2) - low) / (high - low), 0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def amplitude(self) -> float:
        if self.attention:
            return self.attention
        if self.mscale and self.mscale_all:
            return magnitude(self.factor, self.mscale) / magnitude(self.factor, self.mscale_all)
        return magnitude(self.factor)
