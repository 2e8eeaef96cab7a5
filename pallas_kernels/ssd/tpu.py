"""The recurrence on TPU: a grid over (batch, heads, chunks) whose last axis runs in order, the states in fast memory.

A step takes one chunk of several heads, so that the cost of a step is shared; heads of one group share its products
q k^T and, in the backward pass, those that make dq and dk. The backward pass walks the chunks from the last to the
first and reads the state before each, which the forward pass has kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ssd import core
from pallas_kernels.ssd.core import END, START, Request

CHUNK = 128
HEADS = 8  # of a step, at most,
STATES = 2**18  # and bytes of their states in the arrays' dtype
DTYPES = ("float32", "bfloat16")
WIDEST = 256
FAST_MEMORY = 32 * 2**20  # bytes a kernel may take; chips have 64 MiB and more, but v4 16


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    if request.platform != "tpu" and not request.interpret:
        return f"needs a TPU, not {request.platform}"
    if request.dtype not in DTYPES:
        return f"dtype {request.dtype} is not one of {', '.join(DTYPES)}"
    if (width := max(request.width, request.value_width)) > WIDEST:
        return f"head size {width} is over {WIDEST}"
    return None


def chunk(dtype: Any) -> int:
    """Tokens of a chunk."""
    return CHUNK


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, tokens: jax.Array, state: jax.Array, interpret: Any, keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The contract of `core`."""
    call = _Call(q, v, tokens, interpret, backwards=False)

    def kernel(q, k, v, tokens, first, out, final, *rest):
        starts, (state,) = rest[:-1], rest[-1:]
        pl.when(pl.program_id(2) == 0)(lambda: _copy(first, state))
        for ref in starts:
            ref[...] = state[...].astype(ref.dtype)
        for group, heads in call.groups():
            scores = _dot(q[group], k[group], 1, 1)
            for h in heads:
                columns, rows = _numbers(tokens[h])
                out_h, state[h] = core.forward(
                    _dot, q[group], k[group], v[h], scores * core.pair_decays(columns, rows),
                    columns[START], columns[END], rows[START][:, -1:], state[h],
                )  # fmt: skip
                out[h] = out_h.astype(out.dtype)
        pl.when(pl.program_id(2) == call.chunks - 1)(lambda: _copy(state, final))

    outs = [call.heads(v), call.whole(state)]
    if keep:
        outs.append(call.states(jax.ShapeDtypeStruct((*state.shape[:2], call.chunks, *state.shape[2:]), q.dtype)))
    ins = [call.keys(q), call.keys(k), call.heads(v), call.rows(tokens), call.whole(state)]
    found = call.run(kernel, "forward", (2, 2), ins, outs)
    return found[0], found[1], found[2] if keep else None


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    interpret: Any,
    dout: jax.Array,
    dfinal: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The contract of `core`."""
    call = _Call(q, v, tokens, interpret, backwards=True)

    def kernel(q, k, v, tokens, starts, dout, dfinal, dq, dk, dv, dsums, dfirst, dstate):
        pl.when(pl.program_id(2) == 0)(lambda: _copy(dfinal, dstate))
        last = jax.lax.broadcasted_iota(jnp.int32, (1, CHUNK), 1) == CHUNK - 1
        for group, heads in call.groups():
            q_tile, k_tile = q[group], k[group]
            scores = _dot(q_tile, k_tile, 1, 1)
            dscores, dq_far, dk_far = (jnp.zeros(x.shape, jnp.float32) for x in (scores, q_tile, k_tile))
            for h in heads:
                columns, rows = _numbers(tokens[h])
                start, end, fade = columns[START], columns[END], rows[START][:, -1:]
                decays, v_tile, dout_tile, after = core.pair_decays(columns, rows), v[h], dout[h], dstate[h]
                far = _dot(k_tile, after.astype(k_tile.dtype), 1, 0)
                dv[h] = core.values_gradient(_dot, dout_tile, scores, decays, end, far).astype(dv.dtype)
                added, sums, sums_j = core.scores_gradient(_dot, v_tile, dout_tile, scores, decays)
                of_q, read = core.queries_gradient(_dot, q_tile, dout_tile, start, starts[h])
                of_k, written = core.keys_gradient(_dot, k_tile, v_tile, end, after)
                more = core.last_gradient(written, fade, starts[h], after)
                dscores, dq_far, dk_far = dscores + added, dq_far + of_q, dk_far + of_k
                dstate[h] = core.state_gradient(_dot, q_tile, dout_tile, start, fade, after)
                sums_i = jnp.broadcast_to(sums + read + written, (CHUNK, CHUNK)).T[:1]  # a column as a row
                dsums[h] = sums_i + sums_j + jnp.where(last, more, 0.0)
            dscores = dscores.astype(q_tile.dtype)
            dq[group] = (_dot(dscores, k_tile, 1, 0) + dq_far).astype(dq.dtype)
            dk[group] = (_dot(dscores, q_tile, 0, 0) + dk_far).astype(dk.dtype)
        pl.when(pl.program_id(2) == call.chunks - 1)(lambda: _copy(dstate, dfirst))

    some = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    ins = [call.keys(q), call.keys(k), call.heads(v), call.rows(tokens), call.states(starts), call.heads(dout)]
    shared = call.shares(jax.ShapeDtypeStruct((*q.shape[:2], call.parts, *q.shape[2:]), call.sum_dtype(q.dtype)))
    outs = [shared, shared, call.heads(v), call.rows(some(*tokens.shape[:2], 1, v.shape[2])), call.whole(dfinal)]
    dq, dk, dv, dsums, dstate = call.run(kernel, "backward", (6, 4), [*ins, call.whole(dfinal)], outs)
    if call.parts > 1:
        dq, dk = (x.sum(2).astype(q.dtype) for x in (dq, dk))
    return dq.reshape(q.shape), dk.reshape(k.shape), dv, dsums[:, :, 0], dstate


def _copy(source: Any, target: Any) -> None:
    target[...] = source[...]


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """`core.Dot`; of float32 without a loss of bits."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    contract = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, precision=precision, preferred_element_type=jnp.float32)


def _numbers(rows: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """The numbers of a chunk's tokens, each as a column and as a row."""
    count = rows.shape[0]
    square = jnp.concatenate([rows, jnp.zeros((8 - count, CHUNK), jnp.float32)])  # whole sublanes are transposed
    columns = square.T
    return [columns[:, i : i + 1] for i in range(count)], [rows[i : i + 1] for i in range(count)]


Operand = tuple[Any, pl.BlockSpec]  # an array, or the shape of a result, and how the grid cuts it


class _Call:
    """One kernel: its grid (batch, block of heads, chunk), the blocks of its operands, and the launch.

    Attributes:
      chunks: how many there are.
      parts: blocks of heads that share one group.
    """

    def __init__(self, q: Any, v: Any, tokens: Any, interpret: Any, backwards: bool) -> None:
        self.batch, groups, length, self.width = q.shape
        self.heads_all, self.value_width = v.shape[1], v.shape[3]
        self.interpret, self.backwards = interpret, backwards
        share, most = self.heads_all // groups, min(HEADS, STATES // (self.width * self.value_width * q.dtype.itemsize))
        self.share = _divisor(share, most)  # heads of a step that read the same group
        self.several = _divisor(groups, most // share) if self.share == share else 1  # groups of a step
        self.parts, self.chunks = share // self.share, length // CHUNK
        self.grid = (self.batch, self.heads_all // (self.share * self.several), self.chunks)

    def groups(self) -> list[tuple[int, range]]:
        """The groups of a step, and the heads of each, as places in its blocks."""
        return [(i, range(i * self.share, (i + 1) * self.share)) for i in range(self.several)]

    def sum_dtype(self, dtype: Any) -> Any:
        """Of gradients that are summed over `parts` when the kernel is done."""
        return jnp.float32 if self.parts > 1 else dtype

    def _at(self, c: Any) -> Any:
        return self.chunks - 1 - c if self.backwards else c

    def keys(self, x: Any) -> Operand:
        """[B, G, L, K], a chunk of the groups of a step."""
        shape = (None, self.several, CHUNK, x.shape[3])
        return x, pl.BlockSpec(shape, lambda b, h, c: (b, jax.lax.div(h, self.parts), self._at(c), 0))

    def shares(self, x: Any) -> Operand:
        """[B, G, parts, L, K], the same of one part."""
        shape = (None, self.several, None, CHUNK, x.shape[4])
        at = lambda b, h, c: (b, jax.lax.div(h, self.parts), jax.lax.rem(h, self.parts), self._at(c), 0)
        return x, pl.BlockSpec(shape, at)

    def heads(self, x: Any) -> Operand:
        """[B, H, L, V], a chunk of the heads of a step."""
        shape = (None, self.share * self.several, CHUNK, x.shape[3])
        return x, pl.BlockSpec(shape, lambda b, h, c: (b, h, self._at(c), 0))

    def rows(self, x: Any) -> Operand:
        """[B, H, n, L], n numbers of a chunk's tokens."""
        shape = (None, self.share * self.several, x.shape[2], CHUNK)
        return x, pl.BlockSpec(shape, lambda b, h, c: (b, h, 0, self._at(c)))

    def whole(self, x: Any) -> Operand:
        """[B, H, K, V], one state for all chunks."""
        shape = (None, self.share * self.several, *x.shape[2:])
        return x, pl.BlockSpec(shape, lambda b, h, c: (b, h, 0, 0))

    def states(self, x: Any) -> Operand:
        """[B, H, chunks, K, V], the state of each chunk."""
        shape = (None, self.share * self.several, None, *x.shape[3:])
        return x, pl.BlockSpec(shape, lambda b, h, c: (b, h, self._at(c), 0, 0))

    def run(
        self, kernel: Callable[..., None], name: str, products: tuple[int, int], ins: list[Operand], outs: list[Operand]
    ) -> Any:
        """The results of ``kernel(*ins, *outs, states)``; ``products`` are those of token pairs and of states."""
        tokens = math.prod(self.grid) * self.share * self.several * CHUNK
        state = self.width * self.value_width
        arrays = [x for x, _ in (*ins, *outs)]
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[spec for _, spec in ins],
            out_specs=[spec for _, spec in outs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outs],
            scratch_shapes=[pltpu.VMEM((self.share * self.several, self.width, self.value_width), jnp.float32)],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=FAST_MEMORY
            ),
            cost_estimate=pl.CostEstimate(
                flops=tokens * (products[0] * CHUNK * (self.width + self.value_width) + 2 * products[1] * state),
                transcendentals=tokens * CHUNK,
                bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
            ),
            interpret=self.interpret,
            name=f"ssd_{name}_kernel",
        )(*(x for x, _ in ins))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` up to ``most``."""
    return next(x for x in range(max(1, min(number, most)), 0, -1) if number % x == 0)
