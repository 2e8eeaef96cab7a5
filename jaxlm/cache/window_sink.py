"""The first keys of a text and the last ones, in constant memory however long it grows.

Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks. The first S positions of a document stay; of
all others the last W do, in a ring. Tokens evict as the mask of the model does, query by query: a call's queries meet
all that was held before it and all that came with it, and the mask `Lambda` (or a window) hides from each what it
should no longer see; only then is memory given up. So pieces of any size, single steps and the full pass agree, for a
model whose mask shows no more than this cache keeps. With rotary positions that mask comes with
`jaxlm.position.streaming`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.cache.base import View
from jaxlm.core.config import Spec, require
from jaxlm.core.mask import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowSinkCache:
    """State of one layer. Slot s < S is for the token at position s of the document; the W slots behind are a ring.

    Attributes:
      k, v: [B, G, S + W, K]; values may be of another width than keys.
      position: int32 [B, S + W]. segment: int32 [B, S + W], 0 where the slot is empty.
      side: float32 [B, S + W, n], what the position encoding has each token carry beside its key.
      last_side: float32 [B, n], that of the token that came last.
      cursor: int32 [B], the slot of the ring that is written next.
      sinks: S.
      rotated: whether ``k`` holds rotated keys.
    """

    k: jax.Array
    v: jax.Array
    position: jax.Array
    segment: jax.Array
    side: jax.Array
    last_side: jax.Array
    cursor: jax.Array
    sinks: int = dataclasses.field(metadata={"static": True})
    rotated: bool = dataclasses.field(metadata={"static": True})

    @property
    def overflowed(self) -> jax.Array:
        """Boolean [B]: never; what is lost is meant to be."""
        return jnp.zeros(self.k.shape[:1], bool)

    def append(
        self,
        k_BLGK: jax.Array,
        v_BLGK: jax.Array,
        position_BL: jax.Array,
        segment_BL: jax.Array,
        side_BLS: jax.Array | None = None,
    ) -> tuple[WindowSinkCache, View]:
        """Keeps the tokens that are not padding, in the order in which they come.

        Returns the new state, and what was held before together with these tokens: what their queries may meet.
        """
        batch, size = segment_BL.shape
        side = jnp.zeros((batch, size, self.side.shape[-1]), jnp.float32) if side_BLS is None else side_BLS
        new = View(
            k_BLGK.transpose(0, 2, 1, 3).astype(self.k.dtype),
            v_BLGK.transpose(0, 2, 1, 3).astype(self.v.dtype),
            position_BL,
            segment_BL,
            side,
        )
        old = View(self.k, self.v, self.position, self.segment, self.side)
        slots, cursor = self._slots(position_BL, segment_BL)
        put = self._one if size == 1 else self._many
        kept = View(*put(slots, old, new))
        state = dataclasses.replace(self, **kept._asdict(), last_side=side[:, -1], cursor=cursor)
        # One token's query has no use for the key that it evicts, so its view needs no room for both.
        seen = kept if size == 1 else View(*map(_joined, _AXES, old, new))
        return state, seen._replace(k=seen.k.transpose(0, 2, 1, 3), v=seen.v.transpose(0, 2, 1, 3))

    def _slots(self, position: jax.Array, segment: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where each token goes, int32 [B, L] (beyond all slots for padding), and the new cursor."""
        ring = self.position.shape[1] - self.sinks
        first = (segment != 0) & (position < self.sinks)
        later = (segment != 0) & (position >= self.sinks)
        count = jnp.cumsum(later, 1, dtype=jnp.int32)
        slots = self.sinks + (self.cursor[:, None] + count - later) % ring
        slots = jnp.where(first, position, jnp.where(later, slots, self.sinks + ring))
        return slots, (self.cursor + count[:, -1]) % ring

    def _one(self, slots: jax.Array, old: View, new: View) -> list[jax.Array]:
        """Writes one token a row in place."""
        rows, at = jnp.arange(slots.shape[0]), slots[:, 0]

        def put(axis: int, old: jax.Array, new: jax.Array) -> jax.Array:
            if axis == 2:
                return old.at[rows, :, at].set(new[:, :, 0], mode="drop")
            return old.at[rows, at].set(new[:, 0], mode="drop")

        return list(map(put, _AXES, old, new))

    def _many(self, slots: jax.Array, old: View, new: View) -> list[jax.Array]:
        """For each slot the last token that goes there, or the one that it holds."""
        batch, size = slots.shape
        held = self.position.shape[1]
        source = jnp.broadcast_to(jnp.arange(held), (batch, held))
        rows = jnp.arange(batch)[:, None]
        source = source.at[rows, slots].max(held + jnp.arange(size), mode="drop")

        def put(axis: int, old: jax.Array, new: jax.Array) -> jax.Array:
            index = source.reshape(batch, *(1,) * (axis - 1), held, *(1,) * (old.ndim - 1 - axis))
            return jnp.take_along_axis(_joined(axis, old, new), index, axis)

        return list(map(put, _AXES, old, new))


_AXES = (2, 2, 1, 1, 1)  # of the tokens, in a `View` of what is stored


def _joined(axis: int, old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.concatenate((old, new.astype(old.dtype)), axis)


@dataclasses.dataclass(frozen=True)
class WindowSink(Spec):
    """Keep the first tokens and the last.

    Attributes:
      sinks: S, how many of a document's first positions stay; 0 keeps a plain window.
      window: W, how many of the other tokens do: at least what the model's mask shows, the query's own included.
    """

    paper: ClassVar[str] = "Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks"

    sinks: int = 4
    window: int = 1020

    def check(self) -> None:
        require(self.sinks >= 0, f"WindowSink.sinks: expected an integer >= 0, got {self.sinks}")
        require(self.window > 0, f"WindowSink.window: expected a positive integer, got {self.window}")

    def capacities(self, prompt: int, total: int) -> tuple[int, ...]:
        """The tokens it may be given: any number, without growing."""
        return (total,)

    def init(
        self,
        batch: int,
        capacity: int,
        groups: int,
        width: int,
        dtype: Any,
        *,
        pre_rotate: bool,
        value_width: int | None = None,
        side_width: int = 0,
        mask: Mask | None = None,
    ) -> WindowSinkCache:
        """An empty cache for ``groups`` key/value heads, of the same size whatever the ``capacity`` asked for.

        Raises `ConfigError` for a ``mask`` that shows a query more keys than are held.
        """
        slots = self.sinks + self.window
        most = slots if mask is None else mask.most_blocks(1, 1)
        require(
            most is not None and most <= slots,
            f"cache 'window_sink' holds {slots} keys, and the model's mask shows "
            f"{'any number' if most is None else most}; give it a mask that shows no more (jaxlm.extend with "
            "'streaming', 'window' or 'lm_infinite'), or the cache more room",
        )
        return WindowSinkCache(
            k=jnp.zeros((batch, groups, slots, width), dtype),
            v=jnp.zeros((batch, groups, slots, width if value_width is None else value_width), dtype),
            position=jnp.zeros((batch, slots), jnp.int32),
            segment=jnp.zeros((batch, slots), jnp.int32),
            side=jnp.zeros((batch, slots, side_width), jnp.float32),
            last_side=jnp.zeros((batch, side_width), jnp.float32),
            cursor=jnp.zeros((batch,), jnp.int32),
            sinks=self.sinks,
            rotated=pre_rotate,
        )
