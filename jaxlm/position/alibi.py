"""ALiBi: logits get -slope_h * |i - j|, with a fixed geometric slope per head.

slope_h = 2^(-8 (h+1) / H) for H a power of two; otherwise the slopes of the power of two below, then every other slope
of twice that. Learned: nothing. Claimed: train short, test long (Press et al. 2022). Shown by:
experiments.length_generalization. Slopes and distances stay float32: in low precision whole heads underflow.
Checkpoints vary it: MPT sets the 8, Falcon divides the bias by sqrt(K) like the scores, and was trained with the bias
slope_h * j counted from position 0 (the same to a softmax) and rounded to bfloat16, which ``rounding`` repeats.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.types import Params, PositionEncoding, Side, TileBias


def slopes(heads: int, steepness: float = 8.0) -> np.ndarray:
    """float32 [heads], as BLOOM and MPT compute them; the last of a power of two is 2^-steepness."""

    def geometric(n: int) -> np.ndarray:
        return 2.0 ** (-steepness * np.arange(1, n + 1) / n)

    power = 2 ** math.floor(math.log2(heads))
    extra = geometric(2 * power)[0::2][: heads - power]
    return np.concatenate((geometric(power), extra)).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearBias(TileBias):
    """-slope * |distance| with float32 slopes [H]."""

    trainable: ClassVar[bool] = False

    slopes: jax.Array

    def numbers(self) -> jax.Array:
        return self.slopes[:, None]

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return -numbers[0] * jnp.abs(pos_q - pos_k).astype(jnp.float32)


def _rounded(x: jax.Array) -> jax.Array:
    """x to bfloat16 precision; a cast there and back is something that XLA may leave out."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoundedKeyBias(TileBias):
    """multiplier * bfloat16(slope * key position), with slopes [H] and a multiplier [], float32."""

    trainable: ClassVar[bool] = False

    slopes: jax.Array
    multiplier: jax.Array

    def numbers(self) -> jax.Array:
        return jnp.stack((_rounded(self.slopes), jnp.broadcast_to(self.multiplier, self.slopes.shape)), axis=1)

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        keys = _rounded((pos_k + 0 * pos_q).astype(jnp.float32))
        return numbers[1] * _rounded(numbers[0] * keys)


@dataclasses.dataclass(frozen=True)
class Alibi(PositionEncoding):
    """Attention with linear biases.

    Attributes:
      max: the exponent of the flattest slope, 2^-max (MPT's ``alibi_bias_max``).
      multiplier: factor of the bias (Falcon: 1 / sqrt(K)).
      rounding: ``"none"``, or ``"bfloat16"`` for Falcon's bias: slope and slope * key position rounded to bfloat16.
    """

    paper: ClassVar[str] = "Press et al. 2022, Train Short, Test Long: Attention with Linear Biases"

    max: float = 8.0
    multiplier: float = 1.0
    rounding: str = "none"

    def check(self) -> None:
        require(self.max > 0, f"Alibi.max: expected a positive number, got {self.max}")
        choose("Alibi.rounding", self.rounding, ("none", "bfloat16"))

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias:
        steps = jnp.asarray(slopes(q.shape[2], self.max))
        if self.rounding == "bfloat16":
            return RoundedKeyBias(steps, jnp.float32(self.multiplier))
        return LinearBias(self.multiplier * steps)
