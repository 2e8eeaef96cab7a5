"""ALiBi: logits get -slope_h * |i - j|, with a fixed geometric slope per head.

slope_h = 2^(-8 (h+1) / H) for H a power of two; otherwise the slopes of the power of two below, then every other slope
of twice that. Learned: nothing. Claimed: train short, test long (Press et al. 2022). Shown by:
experiments.length_generalization. Slopes and distances stay float32: in low precision whole heads underflow.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.types import Params, PositionEncoding, TileBias


def slopes(heads: int) -> np.ndarray:
    """float32 [heads], as BLOOM and MPT compute them."""

    def geometric(n: int) -> np.ndarray:
        return 2.0 ** (-8.0 * np.arange(1, n + 1) / n)

    power = 2 ** math.floor(math.log2(heads))
    extra = geometric(2 * power)[0::2][: heads - power]
    return np.concatenate((geometric(power), extra)).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearBias(TileBias):
    """-slope * |distance| with float32 slopes [H]."""

    slopes: jax.Array

    def tile(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        distance = jnp.abs(pos_q[:, None, :, None] - pos_k[:, None, None, :]).astype(jnp.float32)
        return -self.slopes[None, :, None, None] * distance


@dataclasses.dataclass(frozen=True)
class Alibi(PositionEncoding):
    """Attention with linear biases."""

    paper: ClassVar[str] = "Press et al. 2022, Train Short, Test Long: Attention with Linear Biases"

    def bias(self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array) -> TileBias:
        return LinearBias(jnp.asarray(slopes(q.shape[2])))
