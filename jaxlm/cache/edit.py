"""Editing a text inside a full cache: tokens leave, the keys behind them move, and their slots are free again.

He et al. 2024, Let the Code LLM Edit Itself When You Edit the Code (positional integrity encoding). A key that is
stored plain only gets its new position; one that is stored rotated is turned once more, by the difference of its
positions, R(new) = R(new - old) R(old). Values stay. New tokens are then appended as any others, at positions in the
middle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.cache.full import FullCache
from jaxlm.ops.rotary import angles, turn

# Rotated keys [B, T, G, K], and by how many positions each moves, int32 [B, T]: the keys at their new positions.
Rerotate = Callable[[jax.Array, jax.Array], jax.Array]


def rerotate(k_BTGK: jax.Array, shift_BT: jax.Array, frequencies: jax.Array, pairing: str) -> jax.Array:
    """Rotated keys moved by a number of positions, which leaves their amplitude (YaRN) as it is.

    Args:
      k_BTGK: keys, of any dtype, which they keep.
      shift_BT: int32, new position minus old.
      frequencies: float32 [m], radians per position of each pair of channels.
      pairing: of `jaxlm.ops.rotary`.
    """
    turns = angles(shift_BT, frequencies)
    return turn(k_BTGK, jnp.cos(turns), jnp.sin(turns), pairing)


def make_room(
    cache: FullCache, segment_B: jax.Array, at_B: jax.Array, delete: int, insert: int, rerotate: Rerotate | None = None
) -> FullCache:
    """The cache without the ``delete`` tokens from position ``at`` on, and with slots and positions for ``insert``.

    Args:
      cache: of one layer.
      segment_B: int32, the document of each row that is edited.
      at_B: int32, the first position that changes.
      delete, insert: how many tokens leave and, afterwards, come.
      rerotate: moves keys that are stored rotated; required for them alone.

    Slots that are left close up, in their order, and open before the first key behind the edit, where the cursor, [B],
    then stands: for encodings that count along the slots, too, the text is in order. `close_room` takes it back.
    """
    last = at_B[:, None] + delete
    own = cache.segment == segment_B[:, None]
    gone = (cache.segment == 0) | (own & (cache.position >= at_B[:, None]) & (cache.position < last))
    behind = own & (cache.position >= last)
    shift = jnp.where(behind, insert - delete, 0)
    k = cache.k
    if cache.rotated and insert != delete:
        assert rerotate is not None
        k = rerotate(k.transpose(0, 2, 1, 3), shift).transpose(0, 2, 1, 3)
    order = jnp.argsort(jnp.where(gone, 2, behind), axis=1, stable=True)
    front = (~gone & ~behind).sum(1, dtype=jnp.int32)[:, None]
    slots = jnp.arange(order.shape[1])
    source = jnp.take_along_axis(order, jnp.where(slots < front, slots, jnp.maximum(slots - insert, 0)), 1)
    full = jnp.take_along_axis(~gone, source, 1) & ((slots < front) | (slots >= front + insert))
    heads = source[:, None, :, None]
    return dataclasses.replace(
        cache,
        k=jnp.take_along_axis(k, heads, 2),
        v=jnp.take_along_axis(cache.v, heads, 2),
        position=jnp.take_along_axis(cache.position + shift, source, 1),
        segment=jnp.where(full, jnp.take_along_axis(cache.segment, source, 1), 0),
        side=jnp.take_along_axis(cache.side, source[..., None], 1),
        cursor=front[:, 0],
    )


def close_room(cache: FullCache, *, each_row: bool) -> FullCache:
    """The cache after the new tokens have come, its cursor behind the last slot in use; [B] if ``each_row``."""
    used = jnp.where(cache.segment != 0, jnp.arange(1, cache.segment.shape[1] + 1, dtype=jnp.int32), 0).max(1)
    return dataclasses.replace(cache, cursor=used if each_row else used.max())
