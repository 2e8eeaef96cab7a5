"""Block-sparse attention as Triton-style Pallas kernels: one program a tile of rows, a loop over the row's list.

The thin GPU back end, for Ampere and newer, float32 too. JAX has declared this lowering deprecated (0.11), so all that
is particular to it stays in this file and in `triton_program`; `mosaic_gpu` is the back end for Hopper.

Three kernels. The forward one and that of dq (and of the bias) walk a row's key blocks; that of dk and dv walks a
column's query blocks, for all query heads that share the key head, so that keys are neither repeated nor summed later,
and holds its tiles transposed, so that their products need no transposition in registers. A list names blocks of the
mask; a program computes with tiles that divide them, as large as registers allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.block_sparse_attention import core
from pallas_kernels.block_sparse_attention.core import Bias, BlockMask, Lists, Options, Request
from pallas_kernels.block_sparse_attention.triton_program import LEAST_TILE, Operand, Program, refused, vector, widen


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    if reason := refused(request):
        return reason
    if request.block_q % LEAST_TILE or request.block_k % LEAST_TILE:
        return f"blocks of {request.block_q} x {request.block_k} are not multiples of {LEAST_TILE}"
    if request.tables:
        return "the mask looks up tables, which a kernel cannot gather from"
    if request.bias == "tile":
        return "the bias has no form for kernels (Bias.at)"
    return None


def blocks(request: Request) -> tuple[int, int]:
    """The shape of a mask's tile that suits these kernels."""
    side = max(LEAST_TILE, math.gcd(128, request.grain or 128))
    return side, side


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, bias: Bias | None, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The contract of `core`."""
    value_width = v.shape[-1]
    q, k, v = widen(q), widen(k), widen(v)
    job = _Job(q, k, mask, bias, options, columns=False)

    def kernel(q_ref, k_ref, v_ref, lists, aside, out_ref, lse_ref):
        start_q, q_tile = job.start(), q_ref[...]

        def step(carry, start_k, kind, head):
            state, weighted = carry
            keys = pl.ds(start_k, job.tile_k)
            logits, _ = job.scores(job.dot(q_tile, k_ref[keys, :], trans_b=True), aside, head, start_q, start_k, kind)
            state, weights, fade = core.softmax_step(state, logits)
            return state, weighted * fade + job.dot(weights.astype(v.dtype), v_ref[keys, :])

        init = core.softmax_start((job.tile_q, 1)), jnp.zeros((job.tile_q, v.shape[-1]), jnp.float32)
        out, lse = core.softmax_finish(*job.walk(lists, 0, start_q, step, init))
        out_ref[...] = out.astype(v.dtype)
        lse_ref[...] = lse.reshape(job.tile_q)

    out, lse = job.call(
        kernel,
        "forward",
        2,
        [job.tiles(q), job.whole(k), job.whole(v)],
        [job.tiles(jax.ShapeDtypeStruct((*q.shape[:3], v.shape[-1]), v.dtype)), job.tiles(vector(q))],
    )
    return out[..., :value_width], lse


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
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """The contract of `core`."""
    width, value_width = q.shape[-1], v.shape[-1]
    q, k, v, dout = (widen(x) for x in (q, k, v, dout))
    dq, dnumbers = _row_gradients(q, k, v, mask, bias, options, lse, delta, dout)
    dk, dv = _column_gradients(q, k, v, mask, bias, options, lse, delta, dout)
    return dq[..., :width], dk[..., :width], dv[..., :value_width], dnumbers


def _row_gradients(q, k, v, mask, bias, options, lse, delta, dout):
    job = _Job(q, k, mask, bias, options, columns=False)
    numbers = bias.numbers.shape[1] if bias is not None and bias.trainable else 0

    def kernel(q_ref, k_ref, v_ref, lse_ref, delta_ref, dout_ref, lists, aside, dq_ref, *dnumbers_ref):
        start_q, q_tile, dout_tile = job.start(), q_ref[...], dout_ref[...]
        lse_tile, delta_tile = lse_ref[...][:, None], delta_ref[...][:, None]

        def step(carry, start_k, kind, head):
            dq, dnumbers = carry
            keys = pl.ds(start_k, job.tile_k)
            k_tile = k_ref[keys, :]
            logits, slope = job.scores(job.dot(q_tile, k_tile, trans_b=True), aside, head, start_q, start_k, kind)
            weights = core.weights_again(logits, lse_tile)
            dlogits = core.score_gradient(weights, job.dot(dout_tile, v_ref[keys, :], trans_b=True), delta_tile)
            if numbers:
                shares = job.bias_gradient(dlogits, aside, head, start_q, start_k)
                dnumbers = tuple(d + share.sum(1) for d, share in zip(dnumbers, shares, strict=True))
            return dq + job.dot((dlogits * slope).astype(k.dtype), k_tile), dnumbers

        init = jnp.zeros(q_tile.shape, jnp.float32), (jnp.zeros((job.tile_q,), jnp.float32),) * numbers
        dq, dnumbers = job.walk(lists, 0, start_q, step, init)
        dq_ref[...] = dq.astype(q.dtype)
        for i, d in enumerate(dnumbers):
            dnumbers_ref[0][i] = d.sum()

    outs = [job.tiles(q)]
    if numbers:
        shape = (*q.shape[:2], job.grid[0], numbers)
        spec = pl.BlockSpec((None, None, None, numbers), lambda i, h, b: (b, h, i, 0))
        outs.append((jax.ShapeDtypeStruct(shape, jnp.float32), spec))
    operands = [job.tiles(q), job.whole(k), job.whole(v), job.tiles(lse), job.tiles(delta), job.tiles(dout)]
    dq, *dnumbers = job.call(kernel, "dq", 3, operands, outs)
    return dq, dnumbers[0].sum((0, 2)) if numbers else None


def _column_gradients(q, k, v, mask, bias, options, lse, delta, dout):
    job = _Job(q, k, mask, bias, options, columns=True)

    def kernel(q_ref, k_ref, v_ref, lse_ref, delta_ref, dout_ref, lists, aside, dk_ref, dv_ref):
        start_k, k_tile, v_tile = job.start(), k_ref[...], v_ref[...]

        def step(carry, start_q, kind, head):
            dk, dv = carry
            queries = pl.ds(start_q, job.tile_q)
            q_tile, dout_tile = q_ref[head, queries, :], dout_ref[head, queries, :]
            logits, slope = job.scores(job.dot(k_tile, q_tile, trans_b=True), aside, head, start_q, start_k, kind)
            weights = core.weights_again(logits, lse_ref[head, queries][None, :])
            dv += job.dot(weights.astype(dout.dtype), dout_tile)
            dweights = job.dot(v_tile, dout_tile, trans_b=True)
            dlogits = core.score_gradient(weights, dweights, delta_ref[head, queries][None, :]) * slope
            return dk + job.dot(dlogits.astype(q.dtype), q_tile), dv

        init = jnp.zeros(k_tile.shape, jnp.float32), jnp.zeros(v_tile.shape, jnp.float32)
        dk, dv = lax.fori_loop(0, job.group, lambda head, carry: job.walk(lists, head, start_k, step, carry), init)
        dk_ref[...] = dk.astype(k.dtype)
        dv_ref[...] = dv.astype(v.dtype)

    queries = [job.whole(q), job.tiles(k), job.tiles(v), job.whole(lse), job.whole(delta), job.whole(dout)]
    return job.call(kernel, "dkv", 4, queries, [job.tiles(k), job.tiles(v)])


class _Aside(NamedTuple):
    """What the mask and the bias look at, each [1 or B, 1 or H, ...]."""

    numbers: list[Any]
    positions: list[Any]
    data_q: list[Any]
    data_k: list[Any]
    bias: list[Any]


class _Job(Program):
    """One kernel's program, and the parts of its body that all three kernels share: it walks the tiles that the list of
    its row (or column) of the block map names."""

    name = "block_sparse_attention"

    def __init__(self, q: Any, k: Any, mask: BlockMask, bias: Bias | None, options: Options, columns: bool):
        self.mask, self.bias = mask, bias
        tuned = dict(options.tuning)
        tile, other_tile, warps = _shape(q, columns)
        self.block, self.other_block = (mask.block_k, mask.block_q) if columns else (mask.block_q, mask.block_k)
        tile = math.gcd(self.block, tuned.get("tile", tile))
        other_tile = math.gcd(self.other_block, tuned.get("other_tile", other_tile))
        super().__init__(q, k, options, columns, tile, other_tile, tuned.get("warps", warps), tuned.get("stages", 2))

    def call(
        self, kernel: Callable[..., None], name: str, products: int, operands: list[Operand], outs: list[Operand]
    ) -> Any:
        """Runs ``kernel(*operands, lists, aside, *outs)``, each as references; it has so many products a tile."""
        lists = self.mask.columns if self.columns else self.mask.rows
        live = lists.counts.mean() if isinstance(lists.counts, np.ndarray) else lists.indices.shape[-1]
        pairs = live * self.tile * self.other_block
        rest = Lists(*map(jnp.asarray, lists)), self._aside()
        return self.launch(kernel, name, products, pairs, operands, rest, outs)

    def _aside(self) -> _Aside:
        mask = self.mask
        data_q, data_k = ([data[:, :, i] for i in range(data.shape[2])] for data in map(jnp.asarray, mask.data))
        return _Aside(
            [jnp.asarray(x).reshape(1, 1, 1) for x in mask.numbers],
            [] if mask.positions is None else [jnp.asarray(x)[:, None] for x in mask.positions],
            data_q,
            data_k,
            [] if self.bias is None else [self.bias.numbers[None]],
        )

    def walk(self, lists: Any, head: Any, start: Any, step: Callable[..., Any], carry: Any) -> Any:
        """``carry = step(carry, first slot, kind, head)`` over the tiles that the list of the program's own names."""
        row, h = lax.div(start, self.block), _head(lists.counts, head)
        parts = self.other_block // self.other_tile

        def body(t, carry):
            j, part = (t, 0) if parts == 1 else (lax.div(t, parts), lax.rem(t, parts))
            first = lists.indices[h, row, j] * self.other_block + part * self.other_tile
            return step(carry, first, lists.kinds[h, row, j], head)

        return lax.fori_loop(0, lists.counts[h, row] * parts, body, carry)

    def scores(self, qk, aside, head, start_q, start_k, kind):
        """`core.scores` of the tile at (start_q, start_k), or of its transpose."""
        slot_q, slot_k = self._slots(start_q, start_k)
        bias = None
        if self.bias is not None:
            pos_q, pos_k = self._positions(aside, start_q, start_k, slot_q, slot_k)
            bias = self.bias.at(self._bias_numbers(aside, head), pos_q, pos_k)
        logits, slope = core.scores(qk, self.options, bias)

        def hide(logits):
            pos_q, pos_k = self._positions(aside, start_q, start_k, slot_q, slot_k)
            numbers = tuple(x[0, 0] for x in aside.numbers)
            data_q = tuple(self._line(x, head, start_q, self.tile_q, 0) for x in aside.data_q)
            data_k = tuple(self._line(x, head, start_k, self.tile_k, 1) for x in aside.data_k)
            return jnp.where(self.mask.see(numbers, pos_q, pos_k, data_q, data_k, kind), logits, core.NEVER)

        return lax.cond(kind & 1, lambda logits: logits, hide, logits), slope

    def bias_gradient(self, dlogits, aside, head, start_q, start_k):
        """d loss / d each number of the bias from every pair of a tile, not yet summed."""
        slot_q, slot_k = self._slots(start_q, start_k)
        pos_q, pos_k = self._positions(aside, start_q, start_k, slot_q, slot_k)
        # As many copies of a number as the tile has pairs: the gradient of each is then elementwise.
        numbers = tuple(jnp.full(dlogits.shape, x) for x in self._bias_numbers(aside, head))
        return jax.vjp(lambda *numbers: self.bias.at(numbers, pos_q, pos_k), *numbers)[1](dlogits)

    def _bias_numbers(self, aside, head):
        (numbers,) = aside.bias
        return tuple(numbers[_head(numbers, head), i] for i in range(numbers.shape[1]))

    def _slots(self, start_q, start_k):
        return self._align(start_q + jnp.arange(self.tile_q), 0), self._align(start_k + jnp.arange(self.tile_k), 1)

    def _positions(self, aside, start_q, start_k, slot_q, slot_k):
        if not aside.positions:
            return slot_q + self.mask.offset, slot_k
        of_q, of_k = aside.positions
        return self._line(of_q, 0, start_q, self.tile_q, 0), self._line(of_k, 0, start_k, self.tile_k, 1)

    def _line(self, ref, head, start, size, axis):
        return self._align(ref[_head(ref, head), pl.ds(start, size)], axis)

    def _align(self, x, axis):
        """``x`` along the queries' (0) or the keys' (1) axis of a tile, which is transposed if it is a column's."""
        return x[:, None] if axis == int(self.columns) else x[None, :]


def _head(ref: Any, head: Any) -> Any:
    return head if ref.shape[0] > 1 else 0


def _shape(x: Any, columns: bool) -> tuple[int, int, int]:
    """The largest tile of its own, and of those it walks, that a program should hold, and its warps.

    Chosen by what ptxas spills for Hopper: nothing in half precision up to head size 128 and in float32 up to 64.
    """
    row_bytes = x.shape[-1] * x.dtype.itemsize
    if x.dtype == jnp.float32 and row_bytes <= 256:
        return 64, 32, 4
    if row_bytes <= 256:
        return (64, 64, 8) if columns else (128, 64, 8)
    return (64, 32, 8) if row_bytes <= 512 else (32, 32, 8)
