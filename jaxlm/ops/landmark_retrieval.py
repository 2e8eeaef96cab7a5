"""Landmark attention from a memory: each query and head reads its own block and the k whose landmarks score highest.

Positions are "stingy" (Mohtashami and Jaggi 2023, and their code): with n earlier blocks, and P slots to a block, the
newest k stand where slots 1..k would be and all older ones in slot 0, the query's own in slot min(n, k + 1); so
landmarks are scored. The blocks that are read then stand in their order from slot 0, those among the newest k one slot
later. So a distance is never longer than k + 2 blocks, and with n <= k all is as in the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.block_sparse_attention.core import FLOOR, NEVER, Options, scores
from pallas_kernels.landmark_attention import core

BUDGET = 2**18  # tokens that are gathered, or landmarks that are scored, at once

Rotate = Callable[[jax.Array, jax.Array], jax.Array]


class Memory(NamedTuple):
    """Keys in N blocks of P slots, a landmark in the last; not rotated.

    Attributes:
      marks: [B, G, N, K], the landmarks' keys.
      positions, segments: int32 [B, N, P]; segment 0 is an empty slot.
      fetch: keys and values of blocks, [B, G, m, P, K], by their numbers, int32 [B, G, m].
    """

    marks: jax.Array
    positions: jax.Array
    segments: jax.Array
    fetch: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Queries(NamedTuple):
    """Queries that stand in the memory: q [B, L, H, K], not rotated, and their slots, positions and segments, [B,
    L]."""

    q: jax.Array
    slots: jax.Array
    positions: jax.Array
    segments: jax.Array


def retrieved_attention(
    queries: Queries,
    memory: Memory,
    *,
    blocks: int,
    stingy: bool,
    rotate_q: Rotate,
    rotate_k: Rotate,
    scale: float,
    soft_cap: float = 0.0,
) -> jax.Array:
    """The grouped softmax over the own block and the chosen ones, times their values.

    Args:
      queries, memory: what reads and what is read.
      blocks: k, how many earlier blocks each query and head reads (fewer where there are fewer).
      stingy: whether blocks that are read move next to the query, or stay at their positions.
      rotate_q, rotate_k: ``rotate(x [B, L, H, K], positions [B, L])``, what makes of queries and keys what is
      multiplied. scale, soft_cap: as in `jaxlm.ops.landmark.landmark_attention`.

    Returns:
      [B, L, H, V] in v's dtype; 0 for a query that sees no key.
    """
    batch, length, heads, _ = queries.q.shape
    groups, (_, count, period) = memory.marks.shape[1], memory.positions.shape
    blocks = min(blocks, count)
    at_once = max(1, BUDGET // (batch * max(heads * (blocks + 1) * period, groups * count)))
    read = _Reader(memory, blocks, stingy, rotate_q, rotate_k, Options(scale, soft_cap))
    if length <= at_once:
        return read(queries)
    more = -length % at_once
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(
            jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)).reshape(batch, -1, at_once, *x.shape[2:]), 1, 0
        ),
        queries,
    )
    out = jnp.moveaxis(jax.lax.map(read, parts), 0, 1)
    return out.reshape(batch, -1, *out.shape[3:])[:, :length]


class _Reader(NamedTuple):
    memory: Memory
    blocks: int
    stingy: bool
    rotate_q: Rotate
    rotate_k: Rotate
    options: Options

    def __call__(self, queries: Queries) -> jax.Array:
        """A few queries. In the comments l counts queries and n the blocks they read, the own one first."""
        memory, groups, (_, count, period) = self.memory, self.memory.marks.shape[1], self.memory.positions.shape
        batch, length, heads, _ = queries.q.shape
        own = queries.slots // period  # [B, l]
        real = queries.segments[..., None] != 0
        earlier = (memory.segments[:, None, :, -1] == queries.segments[..., None]) & real
        earlier &= jnp.arange(count) < own[..., None]  # [B, l, N]
        rank = jnp.cumsum(earlier, -1) - 1  # among the earlier blocks of the query's document
        number = earlier.sum(-1)  # [B, l]
        skipped = jnp.maximum(number - self.blocks - 1, 0) * self.stingy
        q = self.rotate_q(queries.q, queries.positions - period * skipped)
        chosen = self._choose(q, earlier, period * jnp.minimum(rank, skipped[..., None]))  # [B, H, l, k], N if none

        by_head = lambda x: jnp.broadcast_to(x[:, None], (batch, heads, *x.shape[1:]))
        place = jnp.minimum(chosen, count - 1)
        rank = jnp.take_along_axis(by_head(rank), place, -1)
        newest = (number > self.blocks)[:, None, :, None] & (rank >= (number - self.blocks)[:, None, :, None])
        shift = (rank - jnp.arange(self.blocks) - newest) * self.stingy
        place = jnp.concatenate((by_head(own)[..., None], place), -1)  # [B, H, l, n]
        shift = jnp.concatenate((by_head(skipped)[..., None], shift), -1)
        live = jnp.concatenate((jnp.ones((batch, heads, length, 1), bool), chosen < count), -1)

        flat = place.reshape(batch, -1)
        tokens = lambda x: jax.vmap(lambda x, i: x[i])(x, flat).reshape(*place.shape, period)
        positions = tokens(memory.positions) - period * shift[..., None]  # [B, H, l, n, P]
        seen = (tokens(memory.segments) == queries.segments[:, None, :, None, None]) & real[:, None, ..., None]
        keys, values = memory.fetch(place.reshape(batch, groups, -1))
        keys = keys.reshape(batch * heads * length, (self.blocks + 1) * period, 1, -1)
        keys = self.rotate_k(keys, positions.reshape(keys.shape[:2]))
        keys = keys.reshape(*positions.shape, -1)  # [B, H, l, n, P, K]
        raw = jnp.einsum("blhk,bhlnpk->bhlnp", q, keys, preferred_element_type=jnp.float32)[..., None]
        logits, _ = scores(raw, self.options)
        kind = self._kinds(queries.slots, place, seen & live[..., None])
        state, weights, _ = core.softmax_step(core.softmax_start((*raw.shape[:3], 1, 1, 1)), logits, kind)
        values = values.reshape(*positions.shape, -1)
        out = jnp.einsum("bhlnp,bhlnpv->bhlv", weights[..., 0].astype(values.dtype), values)
        total = state.total[..., 0, 0]
        return (out / jnp.where(total > 0, total, 1.0)).astype(values.dtype).transpose(0, 2, 1, 3)

    def _choose(self, q: jax.Array, earlier: jax.Array, shift: jax.Array) -> jax.Array:
        """The blocks of each head and query whose landmarks score highest, rising, N where there are no more."""
        (batch, length, heads, width), (groups, count) = q.shape, self.memory.marks.shape[1:3]
        marks = self.memory.marks[:, None].swapaxes(2, 3)  # [B, 1, N, G, K]
        marks = jnp.broadcast_to(marks, (batch, length, count, groups, marks.shape[-1]))
        positions = self.memory.positions[:, None, :, -1] - shift
        marks = self.rotate_k(marks.reshape(-1, *marks.shape[2:]), positions.reshape(-1, count))
        marks = marks.reshape(batch, length, count, groups, -1)
        q = q.reshape(batch, length, groups, -1, width)
        raw = jnp.einsum("blgrk,blngk->bgrln", q, marks, preferred_element_type=jnp.float32)
        logits, _ = scores(raw.reshape(batch, heads, length, count), self.options)
        best, chosen = jax.lax.top_k(jnp.where(earlier[:, None], logits, NEVER), self.blocks)
        return jnp.sort(jnp.where(best > FLOOR, chosen, count), axis=-1)

    def _kinds(self, slots: jax.Array, place: jax.Array, seen: jax.Array) -> core.Kinds:
        """Of every pair, [B, H, l, n, P, 1]: the own block comes first, all others are earlier."""
        period = self.memory.positions.shape[2]
        offset = jnp.arange(period)[:, None]
        own = (jnp.arange(place.shape[-1]) == 0)[:, None, None]
        mark = offset == period - 1
        before = offset <= (slots % period)[:, None, :, None, None, None]
        seen = seen[..., None]
        return core.Kinds(mark, seen & jnp.where(mark, ~own, own & before), seen & ~mark & ~own)
