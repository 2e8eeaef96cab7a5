"""Landmark attention as Triton-style Pallas kernels: one program a tile of queries, or a block of keys, and a loop over
the causal tiles; those of earlier blocks ask for no mask.

The grid, operands and launch are those of block-sparse attention (`triton_program`). A tile is one block, queries
first: a query's keys then lie in the registers of four threads, and the sums over a block, several in each tile, leave
no warp. The products for dk and dv need the tile transposed for that, through shared memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.block_sparse_attention.core import Options, Request, scores
from pallas_kernels.block_sparse_attention.triton_program import Operand, Program, refused, vector, widen
from pallas_kernels.landmark_attention import core
from pallas_kernels.landmark_attention.core import ONE_BLOCK, Places

SIDE = 128  # queries that a tile may have, at most
# What ptxas compiles for Hopper without spilling registers; longer blocks and wider heads do not fit.
PERIODS = {"float32": (64,), "bfloat16": (16, 32, 64), "float16": (16, 32, 64)}
WIDEST = 128


def supports(request: Request, period: int) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    if reason := refused(request):
        return reason
    if request.interpret:
        return None
    if period not in (sizes := PERIODS[request.dtype]):
        return f"blocks of {period} slots, of {request.dtype}: registers hold those of {' or '.join(map(str, sizes))}"
    if (width := max(request.width, request.value_width)) > WIDEST:
        return f"head size {width} is over {WIDEST}: registers would spill"
    return None


def blocks(request: Request, period: int) -> tuple[int, int]:
    """The shape of a tile, whole blocks of keys."""
    return SIDE, period


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, places: Places, options: Options, request: Request
) -> tuple[jax.Array, jax.Array]:
    """`core`'s forward."""
    value_width = v.shape[-1]
    q, k, v = widen(q), widen(k), widen(v)
    job = _Job(q, k, places, options, columns=False)

    def kernel(q_ref, k_ref, v_ref, aside, out_ref, lse_ref):
        start_q, q_tile = job.start(), q_ref[...]

        def step(past, start_k, carry):
            state, weighted = carry
            keys = pl.ds(start_k, job.tile_k)
            logits, _ = job.scores(q_tile, k_ref[keys, :])
            if past:
                state, weights, fade = core.past_step(state, logits, ONE_BLOCK)
            else:
                kinds = job.kinds(aside, start_q, start_k)
                state, weights, fade = core.softmax_step(state, logits, kinds, ONE_BLOCK)
            added = job.dot(weights.astype(v.dtype), v_ref[keys, :])
            return state, weighted * fade + added

        zeros = jnp.zeros((job.tile_q, v.shape[-1]), jnp.float32)
        state, weighted = job.walk(aside, start_q, step, (core.softmax_start((job.tile_q, 1)), zeros))
        out, lse = core.softmax_finish(state, weighted, ONE_BLOCK)
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
    places: Places,
    options: Options,
    request: Request,
    lse: jax.Array,
    delta: jax.Array,
    dout: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`core`'s backward; two kernels, one for dq, one for dk and dv."""
    width, value_width = q.shape[-1], v.shape[-1]
    q, k, v, dout = (widen(x) for x in (q, k, v, dout))
    dq = _row_gradients(q, k, v, places, options, request, lse, delta, dout)
    dk, dv = _column_gradients(q, k, v, places, options, request, lse, delta, dout)
    return dq[..., :width], dk[..., :width], dv[..., :value_width]


def _row_gradients(q, k, v, places, options, request, lse, delta, dout):
    job = _Job(q, k, places, options, columns=False, products=3)

    def kernel(q_ref, k_ref, v_ref, lse_ref, delta_ref, dout_ref, aside, dq_ref):
        start_q, q_tile, dout_tile, stats = job.start(), q_ref[...], dout_ref[...], (lse_ref[...], delta_ref[...])

        def step(past, start_k, dq):
            keys = pl.ds(start_k, job.tile_k)
            k_tile = k_ref[keys, :]
            kinds = None if past else job.kinds(aside, start_q, start_k)
            _, dscores = job.gradients(q_tile, k_tile, v_ref[keys, :], dout_tile, stats, kinds)
            return dq + job.dot(dscores.astype(k.dtype), k_tile)

        dq_ref[...] = job.walk(aside, start_q, step, jnp.zeros(q_tile.shape, jnp.float32)).astype(q.dtype)

    operands = [job.tiles(q), job.whole(k), job.whole(v), job.tiles(lse), job.tiles(delta), job.tiles(dout)]
    (dq,) = job.call(kernel, "dq", 3, operands, [job.tiles(q)])
    return dq


def _column_gradients(q, k, v, places, options, request, lse, delta, dout):
    job = _Job(q, k, places, options, columns=True, products=4)

    def kernel(q_ref, k_ref, v_ref, lse_ref, delta_ref, dout_ref, aside, dk_ref, dv_ref):
        start_k, k_tile, v_tile = job.start(), k_ref[...], v_ref[...]

        def step(head, past, start_q, carry):
            dk, dv = carry
            queries = pl.ds(start_q, job.tile_q)
            q_tile, dout_tile = q_ref[head, queries, :], dout_ref[head, queries, :]
            stats = lse_ref[head, queries], delta_ref[head, queries]
            kinds = None if past else job.kinds(aside, start_q, start_k)
            weights, dscores = job.gradients(q_tile, k_tile, v_tile, dout_tile, stats, kinds)
            dk += job.dot(dscores.astype(q.dtype), q_tile, trans_a=True)  # before dv: ptxas then spills less
            return dk, dv + job.dot(weights.astype(dout.dtype), dout_tile, trans_a=True)

        def meet(head, carry):
            return job.walk(aside, start_k, functools.partial(step, head), carry)

        init = jnp.zeros(k_tile.shape, jnp.float32), jnp.zeros(v_tile.shape, jnp.float32)
        dk, dv = lax.fori_loop(0, job.group, meet, init)
        dk_ref[...] = dk.astype(k.dtype)
        dv_ref[...] = dv.astype(v.dtype)

    queries = [job.whole(q), job.tiles(k), job.tiles(v), job.whole(lse), job.whole(delta), job.whole(dout)]
    return job.call(kernel, "dkv", 4, queries, [job.tiles(k), job.tiles(v)])


class _Aside(NamedTuple):
    """What is known of the places, int32, each [1 or B, 1, ...].

    Attributes:
      spans: [.., tiles, 3], which tiles a program meets: from the first to the third; the second parts those of earlier
        blocks only from the rest. A tile of queries meets them first, one of keys last.
      slots: [.., Lq], or no such array.
      segments: [.., Lq] and [.., Lk], or none.
    """

    spans: jax.Array
    slots: list[jax.Array]
    segments: list[jax.Array]


class _Job(Program):
    """One kernel's program, and the parts of its body that all three kernels share."""

    name = "landmark_attention"

    def __init__(self, q: Any, k: Any, places: Places, options: Options, columns: bool, products: int = 2):
        self.places = places
        tile_q, warps, stages = _shape(q, places, options, products)
        tile, other_tile = (places.period, tile_q) if columns else (tile_q, places.period)
        super().__init__(q, k, options, columns, tile, other_tile, warps, stages)
        self.lengths = q.shape[2], k.shape[2]

    def call(
        self, kernel: Callable[..., None], name: str, products: int, operands: list[Operand], outs: list[Operand]
    ) -> Any:
        """Runs ``kernel(*operands, aside, *outs)``, each as references; it has so many products a tile."""
        spans = self._spans()
        live = (spans[..., 2] - spans[..., 0]).mean() if isinstance(spans, np.ndarray) else self._others / 2
        slots = [] if self.places.slots is None else [self.places.slots[:, None]]
        aside = _Aside(jnp.asarray(spans)[:, None], slots, [x[:, None] for x in self.places.segments or ()])
        return self.launch(kernel, name, products, live * self.tile * self.other_tile, operands, (aside,), outs)

    @property
    def _others(self) -> int:
        """How many tiles there are to meet."""
        return self.lengths[int(not self.columns)] // self.other_tile

    def _spans(self) -> Any:
        """`_Aside.spans`, [1 or B, tiles, 3]; numpy where slots are not traced."""
        some, past = core.reach(self.places, *self.lengths, self.tile_q, self.tile_k)
        xp: Any = np if isinstance(some, np.ndarray) else jnp
        if self.columns:  # of queries that rise, the last have passed it; padding behind them may have not
            some, past = some.swapaxes(1, 2), past.swapaxes(1, 2)
            middle = self._others - xp.cumprod(past[..., ::-1], -1).sum(-1)
        else:
            middle = past.sum(-1)
        none = ~some.any(-1)
        start = xp.where(none, 0, some.argmax(-1))
        stop = xp.where(none, 0, self._others - some[..., ::-1].argmax(-1))
        return xp.stack([start, xp.clip(middle, start, stop), stop], -1).astype(np.int32)

    # The body of a kernel.

    def walk(self, aside: Any, start: Any, step: Callable[..., Any], carry: Any) -> Any:
        """``carry = step(past, first slot, carry)`` over the tiles that the program's own, at ``start``, meets."""
        ends = [aside.spans[0, lax.div(start, self.tile), i] for i in range(3)]
        for past, first, last in ((not self.columns, *ends[:2]), (self.columns, *ends[1:])):
            if past and self.places.segments is not None:
                continue  # `core.reach` knows none
            meet = functools.partial(step, past)
            carry = lax.fori_loop(first, last, lambda i, carry, meet=meet: meet(i * self.other_tile, carry), carry)
        return carry

    def scores(self, q_tile: jax.Array, k_tile: jax.Array) -> tuple[jax.Array, Any]:
        """Base-2 logits [bq, P] of a tile, and their slope."""
        return scores(self.dot(q_tile, k_tile, trans_b=True), self.options)

    def gradients(
        self, q_tile: jax.Array, k_tile: jax.Array, v_tile: jax.Array, dout_tile: jax.Array, stats: Any, kinds: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The weights of the tile's values and d loss / d (q k^T), [bq, P]; ``kinds`` None for a tile of the past."""
        logits, slope = self.scores(q_tile, k_tile)
        dweights = self.dot(dout_tile, v_tile, trans_b=True)
        lse, delta = (x[:, None] for x in stats)
        if kinds is None:
            weights, dlogits = core.past_gradients(logits, lse, dweights, delta, ONE_BLOCK)
        else:
            weights, dlogits = core.gradients(logits, kinds, lse, dweights, delta, ONE_BLOCK)
        return weights, dlogits * slope

    def kinds(self, aside: Any, start_q: Any, start_k: Any) -> core.Kinds:
        """Of the pairs of the tile at (start_q, start_k)."""
        period = self.places.period
        block_k, within = lax.div(start_k, period), jnp.arange(period)[None]
        if aside.slots:
            slot_q = aside.slots[0][0, pl.ds(start_q, self.tile_q)]
        else:
            slot_q = start_q + self.places.offset + jnp.arange(self.tile_q)
        if not aside.segments:
            return core.kinds(slot_q[:, None], block_k, within, period)
        of_q, of_k = aside.segments
        seg_q, seg_k = of_q[0, pl.ds(start_q, self.tile_q)], of_k[0, pl.ds(start_k, self.tile_k)]
        return core.kinds(slot_q[:, None], block_k, within, period, seg_q[:, None], seg_k[None])


def _shape(q: Any, places: Places, options: Options, products: int) -> tuple[int, int, int]:
    """Queries of a tile, warps and stages, for a kernel of so many products.

    Chosen by what ptxas spills for Hopper: nothing, for heads of 64 and 128 and blocks of `PERIODS`.
    """
    narrow, keys = q.shape[-1] <= 64, products == 4
    if q.dtype == jnp.float32:
        tile, stages = 32 if narrow and not keys else 16, 1
    else:
        many = (not narrow) + (places.segments is not None) + (options.soft_cap > 0)  # each wants registers
        tile, stages = 32 if keys and many > 1 else 128, 2
    return tile, 8, stages
