"""The full cache: every key and value, with its position and segment, written at a cursor.

Keys are stored un-rotated, so that positions may be edited, shifted or rescaled later; where a key's rotation depends
on its own position alone they may instead be stored rotated, which saves turning the whole cache at every step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.cache.base import View
from jaxlm.core.config import Spec, require


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FullCache:
    """State of one layer.

    Attributes:
      k, v: [B, G, T, K], the layout whose decode step is fastest on CPU, GPU and TPU alike; values may be of another
        width than keys.
      position: int32 [B, T]. segment: int32 [B, T], 0 where the slot is empty or holds padding.
      side: float32 [B, T, S], what the position encoding has each token carry beside its key.
      cursor: int32 scalar, the next slot to write, or [B] where rows differ; beyond T the cache has overflowed. All
        rows are written alike, and one slice for them all is several times faster than one for each.
      rotated: whether ``k`` holds rotated keys.
    """

    k: jax.Array
    v: jax.Array
    position: jax.Array
    segment: jax.Array
    side: jax.Array
    cursor: jax.Array
    rotated: bool = dataclasses.field(metadata={"static": True})

    @property
    def overflowed(self) -> jax.Array:
        """Boolean [B]: more tokens were written than the cache holds, so older ones were lost."""
        return jnp.broadcast_to(self.cursor > self.k.shape[2], self.k.shape[:1])

    @property
    def last_side(self) -> jax.Array:
        """float32 [B, S]: the side of the token that came last, zeros for none."""
        at = jnp.broadcast_to(jnp.clip(self.cursor - 1, 0, self.side.shape[1] - 1), self.side.shape[:1])
        return jnp.take_along_axis(self.side, at[:, None, None], 1)[:, 0]  # of an empty cache: zeros

    def append(
        self,
        k_BLGK: jax.Array,
        v_BLGK: jax.Array,
        position_BL: jax.Array,
        segment_BL: jax.Array,
        side_BLS: jax.Array | None = None,
    ) -> tuple[FullCache, View]:
        """Writes L tokens at the cursor. Never at a position: positions may be random, shifted or padded.

        Returns the new state, and the keys that these tokens may meet.
        """

        def put(axis: int, old: jax.Array, new: jax.Array) -> jax.Array:
            write = jax.lax.dynamic_update_slice_in_dim
            if self.cursor.ndim:
                return jax.vmap(lambda o, n, at: write(o, n, at, axis - 1))(old, new.astype(old.dtype), self.cursor)
            return write(old, new.astype(old.dtype), self.cursor, axis)

        state = dataclasses.replace(
            self,
            k=put(2, self.k, k_BLGK.transpose(0, 2, 1, 3)),
            v=put(2, self.v, v_BLGK.transpose(0, 2, 1, 3)),
            position=put(1, self.position, position_BL),
            segment=put(1, self.segment, segment_BL),
            side=self.side if side_BLS is None else put(1, self.side, side_BLS),
            cursor=self.cursor + k_BLGK.shape[1],
        )
        return state, state.view()

    def grow(self, capacity: int) -> FullCache:
        """The same cache with empty slots added, for ``capacity`` tokens in all."""
        more = capacity - self.k.shape[2]

        def pad(axis: int, x: jax.Array) -> jax.Array:
            return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

        rows = {name: pad(1, getattr(self, name)) for name in ("position", "segment", "side")}
        return dataclasses.replace(self, k=pad(2, self.k), v=pad(2, self.v), **rows)

    def view(self) -> View:
        """All that is held."""
        k, v = self.k.transpose(0, 2, 1, 3), self.v.transpose(0, 2, 1, 3)
        return View(k, v, self.position, self.segment, self.side)


@dataclasses.dataclass(frozen=True)
class Full(Spec):
    """Keep everything.

    Attributes:
      rotated: store rotated keys where the position encoding allows it (the default); False always stores them plain.
      chunk: slots that are added at a time as a text grows, since a step reads all slots there are; each size compiles
        a loop of its own. 0 reserves them all at once.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need (incremental decoding)"

    rotated: bool = True
    chunk: int = 0

    def check(self) -> None:
        require(self.chunk >= 0, f"Full.chunk: expected a number of slots, or 0 for all at once, got {self.chunk}")

    def capacities(self, prompt: int, total: int) -> tuple[int, ...]:
        """The sizes that a cache goes through from a prompt to ``total`` tokens."""
        return (*range(prompt + self.chunk, total, self.chunk), total) if self.chunk else (total,)

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
        mask: Any = None,
    ) -> FullCache:
        """An empty cache for ``groups`` key/value heads and ``capacity`` tokens.

        Keys have ``width`` channels, values ``value_width`` or, by default, as many; tokens carry ``side_width``
        numbers beside. Whatever ``mask`` the model has, it finds its keys here.
        """
        return FullCache(
            k=jnp.zeros((batch, groups, capacity, width), dtype),
            v=jnp.zeros((batch, groups, capacity, width if value_width is None else value_width), dtype),
            position=jnp.zeros((batch, capacity), jnp.int32),
            segment=jnp.zeros((batch, capacity), jnp.int32),
            side=jnp.zeros((batch, capacity, side_width), jnp.float32),
            cursor=jnp.int32(0),
            rotated=self.rotated and pre_rotate,
        )
