"""The full cache: every key and value, with its position and segment, written at a cursor.

Keys are stored un-rotated, so that positions may be edited, shifted or rescaled later; where a key's rotation depends
on its own position alone they may instead be stored rotated, which saves turning the whole cache at every step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FullCache:
    """State of one layer.

    Attributes:
      k, v: [B, G, T, K], the layout whose decode step is fastest on CPU, GPU and TPU alike.
      position: int32 [B, T]. segment: int32 [B, T], 0 where the slot is empty or holds padding.
      cursor: int32 [B], the next slot to write; beyond T the cache has overflowed.
      rotated: whether ``k`` holds rotated keys.
    """

    k: jax.Array
    v: jax.Array
    position: jax.Array
    segment: jax.Array
    cursor: jax.Array
    rotated: bool = dataclasses.field(metadata={"static": True})

    @property
    def overflowed(self) -> jax.Array:
        """Boolean [B]: more tokens were written than the cache holds, so older ones were lost."""
        return self.cursor > self.k.shape[2]

    def append(self, k_BLGK: jax.Array, v_BLGK: jax.Array, position_BL: jax.Array, segment_BL: jax.Array) -> FullCache:
        """Writes L tokens at the cursor. Never at a position: positions may be random, shifted or padded."""

        def put(axis: int, old: jax.Array, new: jax.Array) -> jax.Array:
            write = jax.vmap(lambda o, n, at: jax.lax.dynamic_update_slice_in_dim(o, n, at, axis))
            return write(old, new.astype(old.dtype), self.cursor)

        return dataclasses.replace(
            self,
            k=put(1, self.k, k_BLGK.transpose(0, 2, 1, 3)),
            v=put(1, self.v, v_BLGK.transpose(0, 2, 1, 3)),
            position=put(0, self.position, position_BL),
            segment=put(0, self.segment, segment_BL),
            cursor=self.cursor + k_BLGK.shape[1],
        )

    def view(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Keys and values [B, T, G, K], positions and segments [B, T]."""
        return self.k.transpose(0, 2, 1, 3), self.v.transpose(0, 2, 1, 3), self.position, self.segment


@dataclasses.dataclass(frozen=True)
class Full(Spec):
    """Keep everything.

    Attributes:
      rotated: store rotated keys where the position encoding allows it (the default); False always stores them plain.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need (incremental decoding)"

    rotated: bool = True

    def init(self, batch: int, capacity: int, groups: int, width: int, dtype: Any, *, pre_rotate: bool) -> FullCache:
        """An empty cache for ``groups`` key/value heads of ``width`` channels and ``capacity`` tokens."""
        return FullCache(
            k=jnp.zeros((batch, groups, capacity, width), dtype),
            v=jnp.zeros((batch, groups, capacity, width), dtype),
            position=jnp.zeros((batch, capacity), jnp.int32),
            segment=jnp.zeros((batch, capacity), jnp.int32),
            cursor=jnp.zeros((batch,), jnp.int32),
            rotated=self.rotated and pre_rotate,
        )
