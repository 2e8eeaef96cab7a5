"""What running counts and sums need to know of packed rows: where a segment begins, across padding and pieces."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def previous_segment(segment_ids: jax.Array, before: jax.Array) -> jax.Array:
    """The segment of the last real token before each one, int32 [B, L].

    Args:
      segment_ids: int32 [B, L], 0 for padding.
      before: int32 [B], the segment of the last real token of an earlier piece; 0 for none.
    """
    index = jnp.arange(segment_ids.shape[1])
    latest = jax.lax.cummax(jnp.where(segment_ids != 0, index, -1), axis=1)
    latest = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jnp.where(latest >= 0, jnp.take_along_axis(segment_ids, jnp.maximum(latest, 0), 1), before[:, None])


def running_sum(steps: jax.Array, starts: jax.Array, before: jax.Array) -> jax.Array:
    """Sums [B, L, S] of ``steps`` [B, L, S] along a row, which begin anew at ``starts``, boolean [B, L], and continue
    ``before`` [B, S] until the first of them. What came before a start leaves no rounding behind.
    """

    def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1]

    flags = jnp.broadcast_to(starts[..., None], steps.shape)
    sums, anew = jax.lax.associative_scan(join, (steps, flags), axis=1)
    return jnp.where(anew, sums, sums + before[:, None])
