"""What running counts, sums and states must know of packed rows: where segments begin, across padding and pieces."""

from __future__ import annotations

from typing import NamedTuple

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


def last_segment(segment_ids: jax.Array, before: jax.Array) -> jax.Array:
    """The segment of each row's last real token, int32 [B]; ``before`` [B] where there is none."""
    latest = jnp.where(segment_ids != 0, jnp.arange(segment_ids.shape[1]), -1).max(1)
    last = jnp.take_along_axis(segment_ids, jnp.maximum(latest, 0)[:, None], 1)[:, 0]
    return jnp.where(latest >= 0, last, before)


class Rows(NamedTuple):
    """What a recurrence needs to know of padded and packed rows.

    Attributes:
      real: boolean [B, L]. Padding leaves a state as it is: it neither fades nor adds to it.
      epoch: int32 [B, L], how many documents have begun in this piece by then, after another one: tokens of epoch 0
        continue the state that was given, and two tokens meet only within an epoch.
    """

    real: jax.Array
    epoch: jax.Array


def rows_of(segment_ids: jax.Array, before: jax.Array | None = None) -> Rows:
    """`Rows` of segments int32 [B, L], 0 for padding, after a real token of segment ``before`` [B] (0 or None: none).

    The first document of all continues the initial state, whatever that holds; later ones begin at zero.
    """
    before = jnp.zeros_like(segment_ids[:, 0]) if before is None else before
    previous = previous_segment(segment_ids, before)
    real = segment_ids != 0
    return Rows(real, jnp.cumsum(real & (previous != 0) & (segment_ids != previous), axis=1, dtype=jnp.int32))
