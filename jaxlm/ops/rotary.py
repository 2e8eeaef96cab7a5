"""Rotary arithmetic shared by every encoding and mixer that turns pairs of channels (Su et al. 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

PAIRINGS = ("half", "interleaved")


def inverse_frequencies(base: jax.Array | float, width: int) -> jax.Array:
    """float32 [..., width / 2]: base^(-2m / width), radians per position of each pair; ``base`` may be an array.

    Those of a number are rounded once: a power taken in float32 would be wrong by several units in the last place, and
    an angle by 0.1 at position 200,000.
    """
    if isinstance(base, (int, float)):
        return jnp.asarray(float(base) ** (-np.arange(0, width, 2) / width), jnp.float32)
    return jnp.asarray(base, jnp.float32)[..., None] ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)


def angles(positions: jax.Array, frequencies: jax.Array) -> jax.Array:
    """float32 [B, L, m]: positions [B or 1, L] times frequencies [m] or [B, m].

    An element-wise product: as a matmul, TF32 or bfloat16 passes would ruin the angle of a large position.
    """
    return positions[..., None].astype(jnp.float32) * jnp.atleast_2d(frequencies)[:, None]


def turn(x_BLHK: jax.Array, cos: jax.Array, sin: jax.Array, pairing: str) -> jax.Array:
    """Rotates the first 2m channels of each head by angles with the given float32 cos and sin [B or 1, L, m].

    ``"half"`` pairs channel i with i + m, ``"interleaved"`` pairs 2i with 2i + 1. Works in float32 and returns x's
    dtype; the remaining channels pass through.
    """
    pairs = cos.shape[-1]
    x = x_BLHK[..., : 2 * pairs].astype(jnp.float32)
    cos, sin = cos[:, :, None], sin[:, :, None]
    if pairing == "half":
        a, b = x[..., :pairs], x[..., pairs:]
        turned = jnp.concatenate((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = x[..., 0::2], x[..., 1::2]
        turned = jnp.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(x.shape)
    turned = turned.astype(x_BLHK.dtype)
    return turned if 2 * pairs == x_BLHK.shape[-1] else jnp.concatenate((turned, x_BLHK[..., 2 * pairs :]), -1)
