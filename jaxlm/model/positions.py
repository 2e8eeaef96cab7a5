"""Plain positions: the count of real tokens within each segment, across padding, packing and pieces."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.ops.segments import previous_segment


def plain_positions(batch: int, size: int, segment_ids: jax.Array | None, state: Any = None) -> jax.Array:
    """Positions of ``size`` new tokens per row, int32 [1 or B, size].

    Args:
      batch, size: of the new tokens.
      segment_ids: int32 [B, size], 0 for padding, or None for all one segment. Padding gets position 0.
      state: None, or the state the tokens continue: its ``position`` [B] is the next position and ``segment`` [B] the
        segment last seen (0 for none). A new segment starts again from 0.
    """
    if segment_ids is None and state is None:
        return jnp.arange(size, dtype=jnp.int32)[None]
    segments = jnp.ones((batch, size), jnp.int32) if segment_ids is None else segment_ids
    seen = jnp.zeros((batch,), jnp.int32) if state is None else state["segment"]
    offset = jnp.zeros((batch,), jnp.int32) if state is None else state["position"]
    real = segments != 0
    previous = previous_segment(segments, seen)
    rank = jnp.cumsum(real, axis=1) - 1
    start = jax.lax.cummax(jnp.where(real & (segments != previous), rank, -1), axis=1)
    positions = jnp.where(start >= 0, rank - start, offset[:, None] + rank)
    return jnp.where(real, positions, 0).astype(jnp.int32)
