"""Block-sparse attention for any XLA device: a loop over query blocks, each against the gathered blocks of its list.

One query block's scores stay in cache and nothing of size L x L exists. A short list is met at once; a long one in
chunks with an online softmax, as many as it holds, so that traced lists cost what they hold. Static rows of uneven
lengths are sorted into classes (`lists.length_classes`), one loop each. The backward pass recomputes the scores and
adds the gradients of keys and values in place, block by block. Gradients are hand-written; the loops are opaque to JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_attention import core
from pallas_kernels.block_sparse_attention.core import Bias, BlockMask, Lists, Options, Request
from pallas_kernels.block_sparse_attention.lists import length_classes

CHUNK = 8  # blocks met at once

_matmul = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def supports(request: Request) -> str | None:
    """Everything is served."""
    return None


def blocks(request: Request) -> tuple[int, int]:
    """The shape of a tile."""
    return 128, 128


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, bias: Bias | None, options: Options
) -> tuple[jax.Array, jax.Array]:
    """`core`'s forward."""
    p = _Problem(q, k, v, mask, bias, options)
    out = jnp.zeros((p.rows, p.batch, p.groups, p.repeats * mask.block_q, v.shape[-1]), v.dtype)
    lse = jnp.full((p.rows, *p.score_rows), -jnp.inf, jnp.float32)
    for rows, width in p.classes():

        def one(row: jax.Array, width: int = width, shape: Any = out.shape[1:]) -> tuple[jax.Array, jax.Array]:
            query, start = p.query_block(row), core.softmax_start((*p.score_rows, 1))

            def meet(entries: Any, state: core.Softmax, summed: jax.Array | None) -> tuple[core.Softmax, jax.Array]:
                logits, _, _, values = p.tile(query, row, entries)
                state, weights, fade = core.softmax_step(state, logits)
                added = _matmul("bgmt,bgtv->bgmv", p.folded(weights).astype(v.dtype), values)
                return state, added if summed is None else summed * p.folded(fade) + added

            if width <= CHUNK:
                state, summed = meet(p.entries(row, 0, width), start, None)
            else:
                zeros = jnp.zeros(shape, jnp.float32)
                state, summed = jax.lax.fori_loop(
                    0, p.chunks(row), lambda j, c: meet(p.entries(row, j * CHUNK, CHUNK), *c), (start, zeros)
                )
            weighted, row_lse = core.softmax_finish(state, summed.reshape(*p.score_rows, -1))
            return p.folded(weighted).astype(v.dtype), row_lse[..., 0]

        part, part_lse = jax.lax.map(one, jnp.asarray(rows))
        whole = len(rows) == p.rows and width == p.width
        out, lse = (part, part_lse) if whole else (out.at[rows].set(part), lse.at[rows].set(part_lse))
    return p.unblocked(out), p.unblocked(lse.reshape(*out.shape[:-1], 1))[..., 0]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: BlockMask,
    bias: Bias | None,
    options: Options,
    lse: jax.Array,
    delta: jax.Array,
    dout: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """`core`'s backward."""
    p = _Problem(q, k, v, mask, bias, options)
    dout, lse, delta = p.blocked(dout), p.blocked(lse[..., None]), p.blocked(delta[..., None])
    lse, delta = (x.reshape(p.rows, *p.score_rows, 1) for x in (lse, delta))
    dq = jnp.zeros((p.rows, p.batch, p.groups, p.repeats * mask.block_q, q.shape[-1]), q.dtype)
    trained = bias is not None and bias.trainable
    dnumbers = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), bias.numbers) if trained else None
    carry = jnp.zeros(p.k.shape, jnp.float32), jnp.zeros(p.v.shape, jnp.float32), dnumbers
    for rows, width in p.classes():

        def one(carry: Any, row: jax.Array, width: int = width, shape: Any = dq.shape[1:]) -> Any:
            query, out_ct = p.query_block(row), p.row_of(dout, row)
            query_turned, ct_turned = _turned(query), _turned(out_ct)
            row_lse, row_delta = p.row_of(lse, row), p.row_of(delta, row)

            def meet(entries: Any, carry: Any, dquery: jax.Array | None) -> tuple[Any, jax.Array]:
                dk, dv, dnumbers = carry
                if trained:
                    logits, pull, (slope, keys, values) = jax.vjp(
                        lambda numbers: (lambda t: (t[0], t[1:]))(p.tile(query, row, entries, numbers)),
                        bias.numbers,
                        has_aux=True,
                    )
                else:
                    (logits, slope, keys, values), pull = p.tile(query, row, entries), None
                weights = core.weights_again(logits, row_lse)
                dweights = _matmul("bgmv,bgtv->bgmt", out_ct, values).reshape(weights.shape)
                dlogits = core.score_gradient(weights, dweights, row_delta)
                if pull is not None:
                    (more,) = pull(dlogits / core.LOG2E)  # what it pulls are base-2 logits
                    dnumbers = jax.tree.map(jnp.add, dnumbers, more)
                weights = p.folded(weights).astype(v.dtype)
                dscores = p.folded(dlogits * slope).astype(q.dtype)
                added = _matmul("bgmt,bgtk->bgmk", dscores, keys)
                dk = p.add_blocks(dk, entries, _matmul("bgkm,bgmt->bgkt", query_turned, dscores))
                dv = p.add_blocks(dv, entries, _matmul("bgvm,bgmt->bgvt", ct_turned, weights))
                return (dk, dv, dnumbers), added if dquery is None else dquery + added

            if width <= CHUNK:
                carry, dquery = meet(p.entries(row, 0, width), carry, None)
            else:
                zeros = jnp.zeros(shape, jnp.float32)
                carry, dquery = jax.lax.fori_loop(
                    0, p.chunks(row), lambda j, c: meet(p.entries(row, j * CHUNK, CHUNK), *c), (carry, zeros)
                )
            return carry, dquery.astype(q.dtype)

        carry, part = jax.lax.scan(one, carry, jnp.asarray(rows))
        dq = part if len(rows) == p.rows and width == p.width else dq.at[rows].set(part)
    dk, dv, dnumbers = carry
    return p.unblocked(dq), dk.reshape(k.shape).astype(k.dtype), dv.reshape(v.shape).astype(v.dtype), dnumbers


def _turned(x: jax.Array) -> jax.Array:
    """[.., m, k] -> [.., k, m] in memory. Without the barrier XLA folds it into the product, which is then slower."""
    return jax.lax.optimization_barrier(x.swapaxes(-1, -2))


class _Problem:
    """The arrays cut into blocks. Where lists or data differ by head, every query head is by itself (groups = H) and
    reads its key head; else the R heads of a group are folded into one matmul's rows.

    Attributes:
      queries: [rows, B, groups, repeats * block_q, K].
      k, v: [B, G, blocks, block_k, K or V].
      lists: those of rows, long ones padded to whole chunks.
    """

    def __init__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, bias: Bias | None, options: Options
    ) -> None:
        self.mask, self.bias, self.options = mask, bias, options
        self.batch, heads, length, _ = q.shape
        self.rows, self.key_heads = length // mask.block_q, k.shape[1]
        shared = [mask.rows.indices, *mask.data, *(x for x in mask.numbers if jnp.ndim(x))]
        self.by_head = any(x.shape[1] > 1 for x in shared)
        self.groups = heads if self.by_head else k.shape[1]
        self.repeats = heads // self.groups
        self.score_rows = self.batch, self.groups, self.repeats, mask.block_q
        self.queries = self.blocked(q)
        self.k, self.v = (x.reshape(*x.shape[:2], -1, mask.block_k, x.shape[-1]) for x in (k, v))
        width = mask.rows.indices.shape[-1]
        pad = [(0, 0)] * 3 + [(0, -width % CHUNK if width > CHUNK else 0)]
        xp: Any = np if isinstance(mask.rows.indices, np.ndarray) else jnp
        self.lists = Lists(mask.rows.counts, xp.pad(mask.rows.indices, pad), xp.pad(mask.rows.kinds, pad))

    @property
    def width(self) -> int:
        return self.lists.indices.shape[-1]

    def classes(self) -> Iterator[tuple[np.ndarray, int]]:
        """(rows, width of their lists); rows that meet nothing may be left out."""
        counts = self.lists.counts
        if not isinstance(counts, np.ndarray):
            yield np.arange(self.rows, dtype=np.int32), self.width
            return
        longest = counts.max((0, 1))
        yield from length_classes(np.where(longest > CHUNK, -(-longest // CHUNK) * CHUNK, longest))

    def chunks(self, row: jax.Array) -> jax.Array:
        count = jax.lax.dynamic_index_in_dim(jnp.asarray(self.lists.counts), row, 2, keepdims=False).max()
        return (count + CHUNK - 1) // CHUNK

    def entries(self, row: jax.Array, start: Any, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(indices, kinds, live) of ``size`` entries of a row's list, each [Bm, Hm, size]."""
        counts = jax.lax.dynamic_index_in_dim(jnp.asarray(self.lists.counts), row, 2, keepdims=False)
        row_lists = (jax.lax.dynamic_index_in_dim(jnp.asarray(x), row, 2, keepdims=False) for x in self.lists[1:])
        indices, kinds = (jax.lax.dynamic_slice_in_dim(x, start, size, 2) for x in row_lists)
        return indices, kinds, start + jnp.arange(size) < counts[..., None]

    def blocked(self, x: jax.Array) -> jax.Array:
        """[B, H, L, K] -> [rows, B, groups, repeats * block, K]."""
        x = x.reshape(self.batch, self.groups, self.repeats, self.rows, self.mask.block_q, x.shape[-1])
        return x.transpose(3, 0, 1, 2, 4, 5).reshape(self.rows, self.batch, self.groups, -1, x.shape[-1])

    def unblocked(self, x: jax.Array) -> jax.Array:
        x = x.reshape(self.rows, *self.score_rows, x.shape[-1]).transpose(1, 2, 3, 0, 4, 5)
        return x.reshape(self.batch, self.groups * self.repeats, -1, x.shape[-1])

    def row_of(self, x: jax.Array, row: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False)

    def query_block(self, row: jax.Array) -> jax.Array:
        return self.row_of(self.queries, row)

    def folded(self, x: jax.Array) -> jax.Array:
        """[B, groups, repeats, block, n] -> [B, groups, repeats * block, n]."""
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def where(self, x: jax.Array, indices: jax.Array) -> tuple[Any, ...]:
        """The index of ``indices``' blocks [Bm, Hm, n] in x [B or 1, H or G or 1, blocks, ...]."""
        if indices.shape[:2] == (1, 1) and (x.shape[1] != self.key_heads or not self.by_head):
            return slice(None), slice(None), indices[0, 0]
        batch = np.arange(x.shape[0])
        heads = np.arange(max(x.shape[1], indices.shape[1]))
        if x.shape[1] == self.key_heads and self.by_head:
            heads = np.arange(self.groups) // (self.groups // x.shape[1])
        elif x.shape[1] == 1:
            heads = np.zeros_like(heads)
        if x.shape[0] == 1:
            batch = np.zeros(indices.shape[0], np.int64)
        return batch[:, None, None], heads[None, :, None], indices

    def pick(self, x: jax.Array, indices: jax.Array) -> jax.Array:
        """Blocks of x [.., .., blocks, block, K] side by side: [.., .., n * block, K]."""
        found = x[self.where(x, indices)]
        return found.reshape(*found.shape[:2], -1, found.shape[-1])

    def add_blocks(self, total: jax.Array, entries: Any, turned: jax.Array) -> jax.Array:
        """``total`` [B, G, blocks, block, K] plus [B, groups, K, n * block] at the entries' blocks."""
        added = turned.swapaxes(2, 3).reshape(*turned.shape[:2], -1, *total.shape[-2:])
        return total.at[self.where(total, entries[0])].add(added)

    def key_tokens(self, x: jax.Array, indices: jax.Array) -> jax.Array:
        """Per-token numbers [Bd, Hd, Lk] of the entries' blocks: [.., .., 1, n * block]."""
        x = jnp.asarray(x).reshape(*x.shape[:2], -1, self.mask.block_k, 1)
        return self.pick(x, indices)[..., 0][..., None, :]

    def tile(
        self, query: jax.Array, row: jax.Array, entries: Any, numbers: Any = None
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
        """Base-2 logits [B, groups, repeats, block, t] of a row against t keys, their slope, those keys and values."""
        (indices, kinds, live), mask, block_q = entries, self.mask, self.mask.block_q
        keys, values = self.pick(self.k, indices), self.pick(self.v, indices)
        spread = lambda x: jnp.repeat(x, mask.block_k, axis=-1)[:, :, None]  # of an entry to its keys
        if mask.positions is None:
            pos_q = (row * block_q + mask.offset + jnp.arange(block_q))[None, None, :, None]
            pos_k = spread(indices * mask.block_k) + jnp.tile(jnp.arange(mask.block_k), indices.shape[-1])
        else:
            pos_q = self._query_tokens(mask.positions[0][:, None, None], row)[0]
            pos_k = self.key_tokens(mask.positions[1][:, None], indices)
        data_q = self._query_tokens(mask.data[0], row)
        data_k = tuple(self.key_tokens(mask.data[1][:, :, i], indices) for i in range(mask.data[1].shape[2]))
        seen = mask.see(mask.numbers, pos_q, pos_k, data_q, data_k, spread(kinds)) & spread(live)
        raw = _matmul("bgmk,bgtk->bgmt", query, keys).reshape(*self.score_rows, -1)
        bias = None
        if self.bias is not None:
            bias = self._bias(self.bias.numbers if numbers is None else numbers, pos_q[:, 0, :, 0], pos_k[:, :, 0])
        logits, slope = core.scores(raw, self.options, bias, self._by_group(seen))
        return logits, slope, keys, values

    def _query_tokens(self, x: Any, row: jax.Array) -> tuple[jax.Array, ...]:
        """Per-token numbers [Bd, Hd, n, Lq] of a row: n arrays [Bd, Hd, block, 1]."""
        part = jax.lax.dynamic_slice_in_dim(jnp.asarray(x), row * self.mask.block_q, self.mask.block_q, 3)
        return tuple(part[:, :, i, :, None] for i in range(x.shape[2]))

    def _by_group(self, x: jax.Array) -> jax.Array:
        """[B or 1, H or 1, l, t] -> broadcastable over [B, groups, repeats, l, t]."""
        if x.shape[1] == 1:
            return x[:, :, None]
        return x.reshape(x.shape[0], self.groups, self.repeats, *x.shape[2:])

    def _bias(self, numbers: Any, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        """The bias tile from int32 [1 or B, l] and [1 or B, 1 or H, t]; heads that read other keys are picked out."""
        assert self.bias is not None
        tile = functools.partial(self.bias.tile, numbers, pos_q)
        if pos_k.shape[1] == 1:
            return self._by_group(tile(pos_k[:, 0]))
        every = jax.vmap(tile, in_axes=1)(pos_k)  # [H keys, B, H, l, t]
        return self._by_group(jnp.moveaxis(jnp.diagonal(every, axis1=0, axis2=2), -1, 1))
