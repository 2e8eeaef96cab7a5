"""Landmark attention for any XLA device: a loop over query blocks, each against the key tiles up to its own block.

One tile's scores stay in cache and nothing of size L x L exists. Every matmul multiplies the wide array from the left
or the right as it lies, so that XLA transposes only what is one head wide. The backward pass recomputes the scores and
adds the gradients of keys and values in place, tile by tile. Gradients are hand-written; the loops are opaque to JAX.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.block_sparse_attention.core import Options, Request, scores
from pallas_kernels.landmark_attention import core
from pallas_kernels.landmark_attention.core import Kinds, Places

_matmul = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def supports(request: Request, period: int) -> str | None:
    """Everything is served."""
    return None


def blocks(request: Request, period: int) -> tuple[int, int]:
    """The shape of a tile."""
    return min(128, request.length_q), min(core.tile(period, 256), core.tile(period, request.length_k))


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, places: Places, options: Options, request: Request
) -> tuple[jax.Array, jax.Array]:
    """`core`'s forward."""
    p = _Problem(q, k, v, places, options, request)

    def one(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        query = p.row_of(p.queries, row)

        def meet(tile: jax.Array, carry: Any, past: bool) -> Any:
            state, summed = carry
            logits, _, values = p.scores(query, tile)
            state, weights, fade = core.softmax_step(state, logits, p.kinds(row, tile, past))
            added = _matmul("bgtv,bgtr->bgvr", values, p.flat(weights).astype(v.dtype))
            return state, summed * fade[..., 0, :, :] + added

        zeros = jnp.zeros((*query.shape[:2], v.shape[-1], query.shape[-1]), jnp.float32)
        start = core.softmax_start((*query.shape[:2], 1, 1, query.shape[-1]))
        state, summed = p.over_tiles(row, meet, (start, zeros))
        out, lse = core.softmax_finish(state, summed)
        return out.astype(v.dtype), lse

    out, lse = jax.lax.map(one, jnp.arange(p.rows))
    return p.unblocked(out), p.unblocked(lse)[..., 0]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    places: Places,
    options: Options,
    request: Request,
    lse: jax.Array,
    delta: jax.Array,
    dout: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`core`'s backward."""
    p = _Problem(q, k, v, places, options, request)
    douts, lses, deltas = p.blocked(dout), p.blocked(lse[..., None]), p.blocked(delta[..., None])

    def one(carry: Any, row: jax.Array) -> tuple[Any, jax.Array]:
        query, dout, lse, delta = (p.row_of(x, row) for x in (p.queries, douts, lses, deltas))
        lse, delta = lse[..., None, :, :], delta[..., None, :, :]

        def meet(tile: jax.Array, carry: Any, past: bool) -> Any:
            dk, dv, dquery = carry
            logits, slope, values = p.scores(query, tile)
            dweights = p.grouped(_matmul("bgtv,bgvr->bgtr", values, dout))
            weights, dlogits = core.gradients(logits, p.kinds(row, tile, past), lse, dweights, delta)
            dscores = p.flat(dlogits * slope).astype(q.dtype)
            dk = p.add(dk, tile, _matmul("bgtr,bgkr->bgtk", dscores, query))
            dv = p.add(dv, tile, _matmul("bgtr,bgvr->bgtv", p.flat(weights).astype(v.dtype), dout))
            return dk, dv, dquery + _matmul("bgtk,bgtr->bgkr", p.tile_of(k, tile), dscores)

        *carry, dquery = p.over_tiles(row, meet, (*carry, jnp.zeros(query.shape, jnp.float32)))
        return tuple(carry), dquery.astype(q.dtype)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
    (dk, dv), dq = jax.lax.scan(one, zeros, jnp.arange(p.rows))
    return p.unblocked(dq), dk.astype(k.dtype), dv.astype(v.dtype)


class _Problem:
    """The arrays of a call, cut into tiles.

    Attributes:
      rows: number of query blocks.
      queries: [rows, B, G, K, r], with r the R block_q queries that read a tile of one key head.
    """

    def __init__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, places: Places, options: Options, request: Request
    ) -> None:
        self.k, self.v, self.places, self.options = k, v, places, options
        self.block_q, self.block_k, self.period = request.block_q, request.block_k, places.period
        self.batch, heads, length, _ = q.shape
        self.groups = k.shape[1]
        self.repeats, self.rows, self.tiles = heads // self.groups, length // self.block_q, k.shape[2] // self.block_k
        self.queries = self.blocked(q)

    def blocked(self, x: jax.Array) -> jax.Array:
        """[B, H, Lq, K] -> [rows, B, G, K, r]."""
        x = x.reshape(self.batch, self.groups, self.repeats, self.rows, self.block_q, x.shape[-1])
        return x.transpose(3, 0, 1, 5, 2, 4).reshape(self.rows, self.batch, self.groups, x.shape[-1], -1)

    def unblocked(self, x: jax.Array) -> jax.Array:
        """The inverse."""
        x = x.reshape(*x.shape[:-1], self.repeats, self.block_q).transpose(1, 2, 4, 0, 5, 3)
        return x.reshape(self.batch, self.groups * self.repeats, -1, x.shape[-1])

    def row_of(self, x: jax.Array, row: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False)

    def tile_of(self, x: jax.Array, tile: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, tile * self.block_k, self.block_k, 2)

    def add(self, total: jax.Array, tile: jax.Array, added: jax.Array) -> jax.Array:
        new = self.tile_of(total, tile) + added
        return jax.lax.dynamic_update_slice_in_dim(total, new, tile * self.block_k, 2)

    def grouped(self, x: jax.Array) -> jax.Array:
        """[B, G, t, r] -> [B, G, n, P, r]."""
        return x.reshape(*x.shape[:2], -1, self.period, x.shape[-1])

    def flat(self, x: jax.Array) -> jax.Array:
        """The inverse."""
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def scores(self, query: jax.Array, tile: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        """Base-2 logits [B, G, n, P, r] of a row against a tile, their slope, and the tile's values."""
        raw = self.grouped(_matmul("bgtk,bgkr->bgtr", self.tile_of(self.k, tile), query))
        logits, slope = scores(raw, self.options)
        return logits, slope, self.tile_of(self.v, tile)

    def slots(self, row: jax.Array) -> jax.Array:
        """[1 or B, block_q]."""
        if self.places.slots is None:
            return (row * self.block_q + self.places.offset + jnp.arange(self.block_q))[None]
        return jax.lax.dynamic_slice_in_dim(self.places.slots, row * self.block_q, self.block_q, 1)

    def over_tiles(self, row: jax.Array, meet: Any, carry: Any) -> Any:
        """``meet(tile, carry, past)`` over the tiles that a row sees; in a past one every block is an earlier block of
        every query, and no segment hides any."""
        slots = self.slots(row)
        stop = jnp.minimum(slots.max() // self.block_k + 1, self.tiles)
        past = jnp.int32(0)
        if self.places.segments is None:
            past = jnp.minimum(slots.min() // self.period * self.period // self.block_k, stop)
            carry = jax.lax.fori_loop(0, past, functools.partial(meet, past=True), carry)
        return jax.lax.fori_loop(past, stop, functools.partial(meet, past=False), carry)

    def kinds(self, row: jax.Array, tile: jax.Array, past: bool) -> Kinds:
        within = jnp.arange(self.period, dtype=jnp.int32)[:, None]
        if past:
            mark = within == self.period - 1
            return Kinds(mark, mark, ~mark)
        blocks = self.block_k // self.period
        block_k = tile * blocks + jnp.arange(blocks, dtype=jnp.int32)[:, None, None]
        seg_q, seg_k = None, None
        if self.places.segments is not None:
            q, k = self.places.segments
            seg_q = self._spread(jax.lax.dynamic_slice_in_dim(q, row * self.block_q, self.block_q, 1))
            seg_k = jax.lax.dynamic_slice_in_dim(k, tile * self.block_k, self.block_k, 1)
            seg_k = seg_k.reshape(seg_k.shape[0], 1, -1, self.period, 1)
        return core.kinds(self._spread(self.slots(row)), block_k, within, self.period, seg_q, seg_k)

    def _spread(self, x: jax.Array) -> jax.Array:
        """What belongs to the queries of a row, [1 or B, block_q] -> [1 or B, 1, 1, 1, r]."""
        return jnp.tile(x, (1, self.repeats))[:, None, None, None]
