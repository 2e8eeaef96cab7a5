"""Block-sparse attention for any XLA device: a loop over query blocks, each against the gathered blocks of its list.

One query block's scores stay in cache and nothing of size L x L exists. A short list is met at once; a long one in
chunks with an online softmax, as many as it holds, so that traced lists cost what they hold. Static rows of uneven
lengths are sorted into classes (`lists.length_classes`), one loop each. The backward pass recomputes the scores, keys
first, and adds the gradients of keys and values in place, block by block. Gradients are hand-written; the loops are
opaque to JAX.
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

CHUNK = 1024  # keys met at once
LONG = 2**15  # keys beyond which lists of narrow blocks may be tens of megabytes

_matmul = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def supports(request: Request) -> str | None:
    """Everything is served."""
    return None


def blocks(request: Request) -> tuple[int, int]:
    """The shape of a tile: narrow, so that little behind the edge of a window is met, while lists are short."""
    return 128, 32 if request.length_k <= LONG else 64


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, bias: Bias | None, options: Options
) -> tuple[jax.Array, jax.Array]:
    """`core`'s forward."""
    p = _Problem(q, k, v, mask, bias, options)
    out = jnp.zeros((*p.q.shape[:-1], v.shape[-1]), v.dtype)
    found = out, jnp.full((p.batch, q.shape[1], q.shape[2]), -jnp.inf, jnp.float32)
    for rows, width in p.classes():

        def one(found: Any, row: jax.Array, width: int = width) -> Any:
            query, start = p.query_block(p.q, row), core.softmax_start((*p.score_rows, 1))

            def meet(entries: Any, state: core.Softmax, summed: jax.Array | None) -> tuple[core.Softmax, jax.Array]:
                logits, _, _, values = p.tile(query, row, entries)
                state, weights, fade = core.softmax_step(state, logits)
                added = _matmul("bgmt,bgtv->bgmv", p.folded(weights).astype(v.dtype), values)
                return state, added if summed is None else summed * p.folded(fade) + added

            if width <= p.chunk:
                state, summed = meet(p.entries(row, 0, width), start, None)
            else:
                zeros = jnp.zeros((*query.shape[:-1], v.shape[-1]), jnp.float32)
                state, summed = jax.lax.fori_loop(
                    0, p.chunks(row), lambda j, c: meet(p.entries(row, j * p.chunk, p.chunk), *c), (start, zeros)
                )
            weighted, row_lse = core.softmax_finish(state, summed.reshape(*p.score_rows, -1))
            out, lse = found
            return (p.put(out, row, p.folded(weighted)), p.put_numbers(lse, row, row_lse)), None

        found, _ = jax.lax.scan(one, found, jnp.asarray(rows))
    out, lse = found
    return out.swapaxes(1, 2), lse


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
    dout = dout.swapaxes(1, 2)
    trained = bias.numbers if bias is not None and bias.trainable else None
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (p.k, p.v, trained))
    carry = sums, jnp.zeros(p.q.shape, q.dtype)
    for rows, width in p.classes():

        def one(carry: Any, row: jax.Array, width: int = width) -> Any:
            sums, dq = carry
            query, out_ct = p.query_block(p.q, row), p.query_block(dout, row)
            row_lse, row_delta = (_keys_first(p.query_numbers(x, row)) for x in (lse, delta))

            def meet(entries: Any, sums: Any, dquery: jax.Array | None) -> tuple[Any, jax.Array]:
                dk, dv, dnumbers = sums
                if trained is not None:

                    def logits_of(numbers: Any) -> tuple[jax.Array, Any]:
                        logits, *rest = p.tile(query, row, entries, numbers, keys_first=True)
                        return logits, rest

                    logits, pull, (slope, keys, values) = jax.vjp(logits_of, trained, has_aux=True)
                else:
                    (logits, slope, keys, values), pull = p.tile(query, row, entries, keys_first=True), None
                weights = core.weights_again(logits, row_lse)
                dweights = _matmul("bgtv,bgmv->bgtm", values, out_ct).reshape(weights.shape)
                dlogits = core.score_gradient(weights, dweights, row_delta)
                if pull is not None:
                    (more,) = pull(dlogits / core.LOG2E)  # what it pulls are base-2 logits
                    dnumbers = jax.tree.map(jnp.add, dnumbers, more)
                weights = weights.reshape(*keys.shape[:3], -1).astype(v.dtype)
                dscores = (dlogits * slope).reshape(*keys.shape[:3], -1).astype(q.dtype)
                added = _matmul("bgtm,bgtk->bgmk", dscores, keys)
                dk = p.add_blocks(dk, entries, _matmul("bgtm,bgmk->bgtk", dscores, query))
                dv = p.add_blocks(dv, entries, _matmul("bgtm,bgmv->bgtv", weights, out_ct))
                return (dk, dv, dnumbers), added if dquery is None else dquery + added

            if width <= p.chunk:
                sums, dquery = meet(p.entries(row, 0, width), sums, None)
            else:
                zeros = jnp.zeros(query.shape, jnp.float32)
                sums, dquery = jax.lax.fori_loop(
                    0, p.chunks(row), lambda j, c: meet(p.entries(row, j * p.chunk, p.chunk), *c), (sums, zeros)
                )
            return (sums, p.put(dq, row, dquery)), None

        carry, _ = jax.lax.scan(one, carry, jnp.asarray(rows))
    (dk, dv, dnumbers), dq = carry
    dk, dv = (total.reshape(x.swapaxes(1, 2).shape).astype(x.dtype) for total, x in ((dk, k), (dv, v)))
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2), dnumbers


def _keys_first(x: jax.Array) -> jax.Array:
    """[B, groups, repeats, block, t] -> [B, groups, t, repeats, block]."""
    return jnp.moveaxis(x, -1, 2)


class _Problem:
    """The arrays as they come, [B, L, H, K] (turned back here, which cancels with the caller's turning), whose blocks
    are turned one by one: a copy of a whole array would cost about as much as its attention where memory is fresh.

    Where lists or data differ by head, every query head is by itself (groups = H) and reads its key head; else the R
    heads of a group are folded into one matmul's rows.

    Attributes:
      q: [B, L, H, K].
      k, v: [B, blocks, block_k, G, K or V].
      chunk: blocks met at once.
      lists: those of rows, long ones padded to whole chunks.
    """

    def __init__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, bias: Bias | None, options: Options
    ) -> None:
        self.mask, self.bias, self.options = mask, bias, options
        self.chunk = max(1, CHUNK // mask.block_k)
        self.batch, heads, length, _ = q.shape
        self.rows, self.key_heads = length // mask.block_q, k.shape[1]
        shared = [mask.rows.indices, *mask.data, *(x for x in mask.numbers if jnp.ndim(x))]
        self.by_head = any(x.shape[1] > 1 for x in shared)
        self.groups = heads if self.by_head else k.shape[1]
        self.repeats = heads // self.groups
        self.score_rows = self.batch, self.groups, self.repeats, mask.block_q
        self.q = q.swapaxes(1, 2)
        self.k, self.v = self.key_blocks(k), self.key_blocks(v)
        width = mask.rows.indices.shape[-1]
        pad = [(0, 0)] * 3 + [(0, -width % self.chunk if width > self.chunk else 0)]
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
        yield from length_classes(np.where(longest > self.chunk, -(-longest // self.chunk) * self.chunk, longest))

    def chunks(self, row: jax.Array) -> jax.Array:
        count = jax.lax.dynamic_index_in_dim(jnp.asarray(self.lists.counts), row, 2, keepdims=False).max()
        return (count + self.chunk - 1) // self.chunk

    def entries(self, row: jax.Array, start: Any, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(indices, kinds, live) of ``size`` entries of a row's list, each [Bm, Hm, size]."""
        counts = jax.lax.dynamic_index_in_dim(jnp.asarray(self.lists.counts), row, 2, keepdims=False)
        row_lists = (jax.lax.dynamic_index_in_dim(jnp.asarray(x), row, 2, keepdims=False) for x in self.lists[1:])
        indices, kinds = (jax.lax.dynamic_slice_in_dim(x, start, size, 2) for x in row_lists)
        return indices, kinds, start + jnp.arange(size) < counts[..., None]

    def key_blocks(self, x: jax.Array) -> jax.Array:
        """[B, G, L, K] -> [B, blocks, block_k, G, K]."""
        return x.swapaxes(1, 2).reshape(x.shape[0], -1, self.mask.block_k, x.shape[1], x.shape[-1])

    def query_block(self, x: jax.Array, row: jax.Array) -> jax.Array:
        """Of [B, L, H, K] a row's part, [B, groups, repeats * block, K]."""
        size = self.mask.block_q
        part = jax.lax.dynamic_slice_in_dim(x, row * size, size, 1)
        return part.swapaxes(1, 2).reshape(self.batch, self.groups, -1, x.shape[-1])

    def put(self, x: jax.Array, row: jax.Array, part: jax.Array) -> jax.Array:
        """The inverse: ``x`` with a row's part put in."""
        part = part.reshape(self.batch, x.shape[2], -1, x.shape[-1]).swapaxes(1, 2)
        return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), row * self.mask.block_q, 1)

    def query_numbers(self, x: jax.Array, row: jax.Array) -> jax.Array:
        """Of [B, H, L] a row's part, [B, groups, repeats, block, 1]."""
        part = jax.lax.dynamic_slice_in_dim(x, row * self.mask.block_q, self.mask.block_q, 2)
        return part.reshape(*self.score_rows, 1)

    def put_numbers(self, x: jax.Array, row: jax.Array, part: jax.Array) -> jax.Array:
        """The inverse."""
        part = part.reshape(*x.shape[:2], -1)
        return jax.lax.dynamic_update_slice_in_dim(x, part, row * self.mask.block_q, 2)

    def folded(self, x: jax.Array) -> jax.Array:
        """[B, groups, repeats, block, n] -> [B, groups, repeats * block, n]."""
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def where(self, x: jax.Array, indices: jax.Array) -> tuple[Any, ...]:
        """The index of ``indices``' blocks [Bm, Hm, n] in x [B or 1, blocks, block, H or G or 1, ...]."""
        heads = x.shape[3]
        if indices.shape[:2] == (1, 1) and (heads != self.key_heads or not self.by_head):
            return slice(None), indices[0, 0]
        batch = np.arange(x.shape[0])
        which = np.arange(max(heads, indices.shape[1]))
        if heads == self.key_heads and self.by_head:
            which = np.arange(self.groups) // (self.groups // heads)
        elif heads == 1:
            which = np.zeros_like(which)
        if x.shape[0] == 1:
            batch = np.zeros(indices.shape[0], np.int64)
        return batch[:, None, None], indices, slice(None), which[None, :, None]

    def pick(self, x: jax.Array, indices: jax.Array) -> jax.Array:
        """Blocks of x [.., blocks, block, .., K] side by side: [.., heads, n * block, K]."""
        where = self.where(x, indices)
        found = x[where]  # [.., n, block, heads, K], or [.., heads, n, block, K] where each head has its list
        found = found if len(where) > 2 else jnp.moveaxis(found, 3, 1)
        return found.reshape(*found.shape[:2], -1, found.shape[-1])

    def add_blocks(self, total: jax.Array, entries: Any, added: jax.Array) -> jax.Array:
        """``total`` [B, blocks, block, G, K] plus [B, groups, n * block, K] at the entries' blocks."""
        where = self.where(total, entries[0])
        added = added.reshape(*added.shape[:2], -1, self.mask.block_k, total.shape[-1])
        return total.at[where].add(added if len(where) > 2 else jnp.moveaxis(added, 1, 3))

    def key_tokens(self, x: jax.Array, indices: jax.Array) -> jax.Array:
        """Per-token numbers [Bd, Hd, Lk] of the entries' blocks: [.., .., 1, n * block]."""
        return self.pick(self.key_blocks(jnp.asarray(x)[..., None]), indices)[..., 0][..., None, :]

    def tile(
        self, query: jax.Array, row: jax.Array, entries: Any, numbers: Any = None, *, keys_first: bool = False
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
        """Base-2 logits of a row against t keys, their slope, those keys and values.

        Logits are [B, groups, repeats, block, t]; or, keys first, [B, groups, t, repeats, block], which suits the
        products of the backward pass (a CPU saves a tenth of its time), while a forward pass, which sums over keys, is
        slower so.
        """
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
        if not keys_first:
            raw = _matmul("bgmk,bgtk->bgmt", query, keys).reshape(*self.score_rows, -1)
        else:
            raw = _matmul("bgtk,bgmk->bgtm", keys, query).reshape(*keys.shape[:3], self.repeats, -1)
        bias = None
        if self.bias is not None:
            bias = self._bias(self.bias.numbers if numbers is None else numbers, pos_q[:, 0, :, 0], pos_k[:, :, 0])
        seen = self._by_group(seen)
        if keys_first:
            bias, seen = None if bias is None else _keys_first(bias), _keys_first(seen)
        logits, slope = core.scores(raw, self.options, bias, seen)
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
