"""Inverse of unit lower triangular matrices, the UT transform of chunked delta rules and of PaTH."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_EXACT = jax.lax.Precision.HIGHEST  # an error in a product is carried on along the row


@jax.custom_jvp
def unit_lower_inverse(below: jax.Array) -> jax.Array:
    """(I + below)^-1 of strictly lower triangles [..., C, C], by halves: [[A, 0], [B, D]]^-1 has -D^-1 B A^-1 below.

    Nothing but products, log2 C of them in a row. `jax.lax.linalg.triangular_solve` inside of loops, where chunks are,
    was seen to hang on a CPU (jaxlib 0.10.2).

    Args:
      below: of a floating dtype; what is on the diagonal or above it is taken to be 0.

    Returns:
      Unit lower triangles of the same shape and dtype.
    """
    size = below.shape[-1]
    whole = 1 << (size - 1).bit_length()
    lead = below.shape[:-2]
    below = jnp.pad(below, (*((0, 0),) * len(lead), (0, whole - size), (0, whole - size)))
    inverse = jnp.ones((*lead, whole, 1, 1), below.dtype)  # of the blocks on the diagonal, C of width 1 at first
    for step in (1 << n for n in range(whole.bit_length() - 1)):
        pairs = jnp.arange(whole // (2 * step))
        blocks = below.reshape(*lead, whole // step, step, whole // step, step)
        corner = jnp.moveaxis(blocks[..., 2 * pairs + 1, :, 2 * pairs, :], 0, -3)
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -_times(_times(second, corner), first)
        top = jnp.concatenate((first, jnp.zeros_like(first)), -1)
        inverse = jnp.concatenate((top, jnp.concatenate((corner, second), -1)), -2)
    return inverse[..., 0, :size, :size]


@unit_lower_inverse.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    inverse = unit_lower_inverse(primals[0])
    return inverse, -_times(_times(inverse, jnp.tril(tangents[0], -1)), inverse)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_EXACT)
