"""The landmark memory: keys in blocks, of which each query reads its own and those whose landmarks it scores highest.

Mohtashami and Jaggi 2023, Landmark Attention: Random-Access Infinite Context Length for Transformers, section 3.2. A
mixer trained with landmarks (`jaxlm.mixer.landmark`) needs, per token and head, its own block and the k best of all
earlier ones; their keys take slots next to it, so that no distance is longer than those of training. With k at least
the number of blocks it computes what it did in training.

Tokens lie in the order in which they came, padding left out, so that a block is ``period`` slots whatever the batch.
Keys and values may live in the host's memory: a step then moves k + 1 blocks a head, and the landmarks' keys, which are
kept beside the model, choose them.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import choose
from jaxlm.ops import host_memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LandmarkCache:
    """State of one layer. T is the capacity in whole blocks.

    Attributes:
      k, v: [B, G, T, K]; under a policy that offloads, tables [B G T / P, P K] in the host's memory.
      marks: [B, G, T / P, K], the keys of the landmarks, apart; None if all blocks are read.
      position: int32 [B, T]. segment: int32 [B, T], 0 where the slot is empty.
      cursor: int32 [B], the next slot of each row.
      capacity: tokens it may hold; beyond them it has overflowed.
      period: slots of a block.
      rotated: whether ``k`` holds rotated keys.
      policy: how many blocks are read, and at which positions.
    """

    k: jax.Array
    v: jax.Array
    marks: jax.Array | None
    position: jax.Array
    segment: jax.Array
    cursor: jax.Array
    capacity: int = dataclasses.field(metadata={"static": True})
    period: int = dataclasses.field(metadata={"static": True})
    rotated: bool = dataclasses.field(metadata={"static": True})
    policy: Landmark = dataclasses.field(metadata={"static": True})

    @property
    def overflowed(self) -> jax.Array:
        """Boolean [B]: more tokens came than the memory holds, and were lost."""
        return self.cursor > self.capacity

    def append(
        self, k_BLGK: jax.Array, v_BLGK: jax.Array, position_BL: jax.Array, segment_BL: jax.Array
    ) -> tuple[LandmarkCache, jax.Array]:
        """Writes the tokens that are not padding, each row at its own cursor; returns their slots too, int32 [B, L]."""
        real = segment_BL != 0
        slots = self.cursor[:, None] + jnp.cumsum(real, 1, dtype=jnp.int32) - real
        rows, at = jnp.arange(real.shape[0])[:, None], jnp.where(real, slots, self.position.shape[1])
        write = lambda old, new, at: old.at[rows, at].set(new, mode="drop")
        write_heads = lambda old, new, at: old.at[rows, :, at].set(new.astype(old.dtype), mode="drop")
        marks = self.marks
        if marks is not None:
            is_mark = at % self.period == self.period - 1
            marks = write_heads(marks, k_BLGK, jnp.where(is_mark, at // self.period, marks.shape[2]))
        keep = self._write_host if self.policy.offload else write_heads
        state = dataclasses.replace(
            self,
            k=keep(self.k, k_BLGK, at),
            v=keep(self.v, v_BLGK, at),
            marks=marks,
            position=write(self.position, position_BL, at),
            segment=write(self.segment, segment_BL, at),
            cursor=self.cursor + real.sum(1, dtype=jnp.int32),
        )
        return state, slots

    def fetch(self, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of blocks, [B, G, m, P, K], by their numbers ``place``, int32 [B, G, m]."""

        def one(x: jax.Array) -> jax.Array:
            if self.policy.offload:
                rows = self._rows(place, jnp.arange(place.shape[1])[:, None]).reshape(-1)
                return host_memory.read_rows(x, rows).reshape(*place.shape, self.period, -1)
            x = x.reshape(*x.shape[:2], -1, self.period, x.shape[-1])
            return jax.vmap(jax.vmap(lambda x, i: x[i]))(x, place)

        return one(self.k), one(self.v)

    def _write_host(self, table: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        """``table`` with the keys or values ``new`` [B, L, G, K] at the slots ``at`` [B, L]."""
        *_, groups, width = new.shape
        rows = self._rows(at[..., None] // self.period, jnp.arange(groups))  # [B, L, G]
        rows = jnp.where((at < self.position.shape[1])[..., None], rows, table.shape[0])
        columns = jnp.broadcast_to((at % self.period * width)[..., None], rows.shape)
        return host_memory.write_pieces(table, rows.reshape(-1), columns.reshape(-1), new.reshape(-1, width))

    def _rows(self, block: jax.Array, head: jax.Array) -> jax.Array:
        """Where a table on the host holds the blocks of heads: int32 [B, ...] and what broadcasts to it."""
        assert self.marks is not None
        batch, groups, blocks, _ = self.marks.shape
        return (jnp.arange(batch)[:, None, None] * groups + head) * blocks + block

    def grow(self, capacity: int) -> LandmarkCache:
        """The same memory with empty slots added, for ``capacity`` tokens in all."""
        more = _whole(capacity, self.period) - self.position.shape[1]
        pad = lambda axis, x: _padded(x, axis, more)
        return dataclasses.replace(
            self,
            k=pad(2, self.k),
            v=pad(2, self.v),
            marks=None if self.marks is None else _padded(self.marks, 2, more // self.period),
            position=pad(1, self.position),
            segment=pad(1, self.segment),
            capacity=capacity,
        )

    def view(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Keys and values [B, T, G, K], positions and segments [B, T]."""
        return self.k.transpose(0, 2, 1, 3), self.v.transpose(0, 2, 1, 3), self.position, self.segment


@dataclasses.dataclass(frozen=True)
class Landmark(Spec):
    """Read the own block and the best of the earlier ones.

    Attributes:
      blocks: how many earlier blocks each token and head reads; 0 for all of them.
      positions: ``"stingy"``: read blocks stand next to the query's own, and are scored there, the newest in their
        order and all older ones in one place; ``"original"``: where they stood in the text.
      chunk: slots that are added at a time as a text grows; 0 reserves them all at once.
      offload: keep keys and values in the host's memory, all reserved at once. A CPU has no other, and says so.
    """

    paper: ClassVar[str] = "Mohtashami and Jaggi 2023, Landmark Attention: Random-Access Infinite Context Length"

    blocks: int = 4
    positions: str = "stingy"
    chunk: int = 0
    offload: bool = False

    def check(self) -> None:
        require(self.blocks >= 0, f"Landmark.blocks: expected a number of blocks, or 0 for all, got {self.blocks}")
        require(self.chunk >= 0, f"Landmark.chunk: expected a number of slots, or 0 for all at once, got {self.chunk}")
        choose("Landmark.positions", self.positions, ("stingy", "original"))
        require(
            not self.offload or (self.blocks and not self.chunk),
            "Landmark.offload needs blocks > 0 (reading all of them would move them all) and chunk 0",
        )

    def capacities(self, prompt: int, total: int) -> tuple[int, ...]:
        """The sizes that a memory goes through from a prompt to ``total`` tokens."""
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
        period: int = 0,
    ) -> LandmarkCache:
        """An empty memory for ``groups`` key/value heads and ``capacity`` tokens, in blocks of ``period``.

        Raises `ConfigError` for a mixer without blocks.
        """
        del side_width, mask  # of encodings and masks that the mixer 'landmark' does not have
        require(period, "cache 'landmark' serves the mixer 'landmark', whose keys lie in blocks; others take 'full'")
        slots, value_width = _whole(capacity, period), width if value_width is None else value_width
        if self.offload and not host_memory.is_apart():
            warnings.warn("cache 'landmark': offload does nothing on a CPU, whose memory is the host's", stacklevel=2)

        def empty(width: int) -> jax.Array:
            if self.offload:
                return host_memory.to_host(jnp.zeros((batch * groups * slots // period, period * width), dtype))
            return jnp.zeros((batch, groups, slots, width), dtype)

        return LandmarkCache(
            k=empty(width),
            v=empty(value_width),
            marks=jnp.zeros((batch, groups, slots // period, width), dtype) if self.blocks else None,
            position=jnp.zeros((batch, slots), jnp.int32),
            segment=jnp.zeros((batch, slots), jnp.int32),
            cursor=jnp.zeros((batch,), jnp.int32),
            capacity=capacity,
            period=period,
            # A block that is read moves to other positions, so its keys are stored plain.
            rotated=pre_rotate and not self.blocks,
            policy=self,
        )


def _whole(capacity: int, period: int) -> int:
    return -(-capacity // period) * period


def _padded(x: jax.Array, axis: int, more: int) -> jax.Array:
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
