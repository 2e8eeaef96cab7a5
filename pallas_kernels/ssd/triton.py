"""The recurrence as Triton-style Pallas kernels: one program a head and block of values, with the state in registers
while it walks the chunks.

The backward pass walks them once, from the last to the first, for the gradients of the states alone; with the states
before each chunk, which the forward pass has kept, all chunks' gradients are then programs of their own. A state's
columns are independent, so value blocks are too; only dq, dk and d loss / d c are summed over them, and over the heads
of a group, once the kernel is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.ssd import core
from pallas_kernels.ssd.core import END, START, Request

LEAST_TILE = 16  # of a matrix product
# What ptxas compiles for Hopper without spilling registers: tokens of a chunk and the width of keys, by dtype, and the
# widths of values that a program takes at once, one that walks the chunks with a state and one of a chunk's gradients,
# and of keys, in parts.
CHUNKS = {"float32": 16, "bfloat16": 64}
WIDEST = {"float32": 64, "bfloat16": 128}
WALKED, VALUES, PART = 32, 64, 64


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    if request.platform != "gpu" and not request.interpret:
        return f"needs a GPU, not {request.platform}"
    if request.dtype not in CHUNKS:
        return f"dtype {request.dtype} is not one of {', '.join(CHUNKS)}"
    if request.width > (most := WIDEST[request.dtype]):
        return f"keys {request.width} wide are over {most}, of {request.dtype}: registers would spill"
    return None


def chunk(dtype: Any) -> int:
    """Tokens of a chunk."""
    return CHUNKS[jnp.dtype(dtype).name]


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, tokens: jax.Array, state: jax.Array, interpret: Any, keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The contract of `core`; ``starts`` keep the padding of the states."""
    width, value_width = q.shape[3], v.shape[3]
    q, k, v, state = _widen(q), _widen(k), _widen(v), _widen(state, 2)
    call = _Call(q, v, tokens, interpret, "forward")

    def kernel(q, k, v, tokens, first, out, final, *starts):
        def step(i, state):
            at = pl.ds(i * call.chunk, call.chunk)
            for ref in starts:
                ref[i] = state.astype(ref.dtype)
            q_tile, k_tile = q[at, :], k[at, :]
            columns, rows = call.numbers(tokens, at)
            out_tile, state = core.forward(
                call.dot, q_tile, k_tile, v[at, :],
                call.dot(q_tile, k_tile, 1, 1) * core.pair_decays(columns, rows),
                columns[START], columns[END], call.fade(tokens, i), state,
            )  # fmt: skip
            out[at, :] = out_tile.astype(out.dtype)
            return state

        final[...] = lax.fori_loop(0, call.chunks, step, first[...])

    outs = [call.values(v), call.state(state)]
    if keep:
        outs.append(call.states(jax.ShapeDtypeStruct((*state.shape[:2], call.chunks, *state.shape[2:]), q.dtype)))
    ins = [call.keys(q), call.keys(k), call.values(v), call.rows(tokens), call.state(state)]
    found = call.run(kernel, (2, 2), ins, outs)
    return found[0][..., :value_width], found[1][..., :width, :value_width], found[2] if keep else None


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
    width, value_width = q.shape[3], v.shape[3]
    q, k, v, dout, dfinal = _widen(q), _widen(k), _widen(v), _widen(dout), _widen(dfinal, 2)
    ends, dstate = _ends(q, v, tokens, interpret, dout, dfinal)
    call = _Call(q, v, tokens, interpret, "gradients")

    def kernel(q, k, v, tokens, state, dstate, dout, dq, dk, dv, dsums):
        # A part of the keys' width at a time, in the order in which the least is alive at once: registers are short.
        columns, rows = call.numbers(tokens, pl.ds(0, call.chunk))
        start, end, fade = columns[START], columns[END], call.fade(tokens, 0)
        part = min(PART, call.width)

        def meet(i, carry):
            at, (scores, far) = pl.ds(i * part, part), carry
            k_part = k[:, at]
            return scores + call.dot(q[:, at], k_part, 1, 1), far + call.dot(k_part, dstate[at, :], 1, 0)

        zeros = jnp.zeros((call.chunk, call.chunk), jnp.float32), jnp.zeros((call.chunk, call.block), jnp.float32)
        scores, far = lax.fori_loop(0, call.width // part, meet, zeros)
        decays = core.pair_decays(columns, rows)
        dv[...] = core.values_gradient(call.dot, dout[...], scores, decays, end, far).astype(dv.dtype)
        dscores, sums, sums_j = core.scores_gradient(call.dot, v[...], dout[...], scores, decays)
        dscores = dscores.astype(q.dtype)

        def gradients(i, carry):
            at, (sums, more) = pl.ds(i * part, part), carry
            far, read = core.queries_gradient(call.dot, q[:, at], dout[...], start, state[at, :])
            dq[:, at] = (call.dot(dscores, k[:, at], 1, 0) + far).astype(dq.dtype)
            far, written = core.keys_gradient(call.dot, k[:, at], v[...], end, dstate[at, :])
            dk[:, at] = (call.dot(dscores, q[:, at], 0, 0) + far).astype(dk.dtype)
            return sums + read + written, more + core.last_gradient(written, fade, state[at, :], dstate[at, :])

        sums, more = lax.fori_loop(0, call.width // part, gradients, (sums, jnp.zeros((1, 1), jnp.float32)))
        last = jnp.where(jnp.arange(call.chunk)[None] == call.chunk - 1, more, 0.0)
        dsums[...] = sums.reshape(call.chunk) + (sums_j + last).reshape(call.chunk)

    def parts(x: jax.Array) -> Operand:
        alone = call.blocks == call.share == 1
        return call.part(
            jax.ShapeDtypeStruct((*v.shape[:2], call.blocks, *x.shape[2:]), q.dtype if alone else jnp.float32)
        )

    def summed(x: jax.Array, kind: Any) -> jax.Array:
        return x.reshape(x.shape[0], -1, call.share * call.blocks, *x.shape[3:]).sum(2).astype(kind)[..., :width]

    sums = call.part(jax.ShapeDtypeStruct((*v.shape[:2], call.blocks, v.shape[2]), jnp.float32))
    ins = [call.keys(q), call.keys(k), call.values(v), call.rows(tokens), call.states(starts), call.states(ends)]
    outs = [parts(q), parts(k), call.values(v), sums]
    dq, dk, dv, dsums = call.run(kernel, (5, 3), [*ins, call.values(dout)], outs)
    dq, dk = summed(dq, q.dtype), summed(dk, k.dtype)
    return dq, dk, dv[..., :value_width], dsums.sum(2), dstate[..., :width, :value_width]


def _ends(q, v, tokens, interpret, dout, dfinal):
    """d loss / d S_end of each chunk, as ``starts``, and d loss / d the first state."""
    call = _Call(q, v, tokens, interpret, "ends")

    def kernel(q, tokens, dout, dfinal, ends, dfirst):
        def step(j, dstate):
            i = call.chunks - 1 - j
            at = pl.ds(i * call.chunk, call.chunk)
            ends[i] = dstate.astype(ends.dtype)
            start = tokens[START, at][:, None]
            return core.state_gradient(call.dot, q[at, :], dout[at, :], start, call.fade(tokens, i), dstate)

        dfirst[...] = lax.fori_loop(0, call.chunks, step, dfinal[...])

    ends = jax.ShapeDtypeStruct((*dfinal.shape[:2], call.chunks, *dfinal.shape[2:]), q.dtype)
    ins = [call.keys(q), call.rows(tokens), call.values(dout), call.state(dfinal)]
    return call.run(kernel, (0, 1), ins, [call.states(ends), call.state(dfinal)])


def _widen(x: jax.Array, axes: int = 1) -> jax.Array:
    """Zeros behind, along the last axes, up to powers of two: Triton's tiles know no other sizes."""
    sizes = [max(LEAST_TILE, 1 << (n - 1).bit_length()) - n for n in x.shape[-axes:]]
    return jnp.pad(x, [(0, 0)] * (x.ndim - axes) + [(0, n) for n in sizes]) if any(sizes) else x


Operand = tuple[Any, pl.BlockSpec]  # an array, or the shape of a result, and the block of it that a program sees


class _Call:
    """One kernel: its grid, the blocks of its operands, its products and the launch.

    The grid is (block of values, head, batch), and a program walks the chunks; or, of the kernel ``gradients``, which
    knows the states around every chunk, (block of values and chunk, head, batch).

    Attributes:
      chunk, chunks: tokens of one, and how many there are.
      blocks: of values.
      share: heads of a group.
    """

    def __init__(self, q: Any, v: Any, tokens: Any, interpret: Any, name: str) -> None:
        (batch, groups, length, self.width), (_, heads, _, value_width) = q.shape, v.shape
        self.name, self.interpret, self.alone = name, interpret, name == "gradients"
        self.block = min(VALUES if self.alone else WALKED, value_width)
        self.chunk = chunk(q.dtype)
        self.chunks, self.blocks, self.share = length // self.chunk, value_width // self.block, heads // groups
        self.grid = (self.blocks * (self.chunks if self.alone else 1), heads, batch)
        # Float32 as three products of its TF32 halves: a tensor core's speed at nearly float32's precision.
        exact = lax.Precision.HIGHEST if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        self.precision = exact if q.dtype == jnp.float32 else None
        self.params = plt.CompilerParams(num_warps=8, num_stages=1)

    def _spec(self, shape: tuple[int | None, ...], at: Callable[..., Any]) -> pl.BlockSpec:
        """A block ``shape`` at ``at(batch, head, block of values, chunk)``; all chunks are one of number 0."""

        def index(i: Any, h: Any, b: Any) -> Any:
            return at(b, h, lax.rem(i, self.blocks), lax.div(i, self.blocks))

        return pl.BlockSpec(shape, index)

    @property
    def tokens(self) -> int:
        """That a program sees."""
        return self.chunk * (1 if self.alone else self.chunks)

    def keys(self, x: Any) -> Operand:
        """[B, G, L, K]."""
        return x, self._spec(
            (None, None, self.tokens, x.shape[3]), lambda b, h, v, c: (b, lax.div(h, self.share), c, 0)
        )

    def values(self, x: Any) -> Operand:
        """[B, H, L, V], a block of values."""
        return x, self._spec((None, None, self.tokens, self.block), lambda b, h, v, c: (b, h, c, v))

    def rows(self, x: Any) -> Operand:
        """[B, H, n, L]."""
        return x, self._spec((None, None, x.shape[2], self.tokens), lambda b, h, v, c: (b, h, 0, c))

    def state(self, x: Any) -> Operand:
        """[B, H, K, V], a block of values."""
        return x, self._spec((None, None, x.shape[2], self.block), lambda b, h, v, c: (b, h, 0, v))

    def states(self, x: Any) -> Operand:
        """[B, H, chunks, K, V], a block of values of the chunk or of all."""
        chunks = None if self.alone else self.chunks
        return x, self._spec((None, None, chunks, x.shape[3], self.block), lambda b, h, v, c: (b, h, c, 0, v))

    def part(self, x: Any) -> Operand:
        """[B, H, blocks, L, ...], what a program gives to a sum."""
        rest = x.shape[4:]
        zeros = (0,) * len(rest)
        return x, self._spec((None, None, None, self.tokens, *rest), lambda b, h, v, c: (b, h, v, c, *zeros))

    def numbers(self, tokens: Any, at: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        """Those of a chunk's tokens, each as a column and as a row."""
        rows = [tokens[i, at] for i in range(tokens.shape[0])]
        return [x[:, None] for x in rows], [x[None] for x in rows]

    def fade(self, tokens: Any, i: Any) -> jax.Array:
        """START of the last token of a chunk."""
        return tokens[START, i * self.chunk + self.chunk - 1]

    def dot(self, a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
        """`core.Dot`."""
        return plt.dot(a, b, trans_a=axis_a == 0, trans_b=axis_b == 1, precision=self.precision)

    def run(
        self, kernel: Callable[..., None], products: tuple[int, int], ins: list[Operand], outs: list[Operand]
    ) -> Any:
        """The results of ``kernel(*ins, *outs)``; ``products`` are those over pairs of tokens, and with a state."""
        tokens, state = math.prod(self.grid) * self.tokens, self.width * self.block
        arrays = [x for x, _ in (*ins, *outs)]
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[spec for _, spec in ins],
            out_specs=[spec for _, spec in outs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outs],
            compiler_params=self.params,
            cost_estimate=pl.CostEstimate(
                flops=tokens * (products[0] * self.chunk * (self.width + self.block) + 2 * products[1] * state),
                transcendentals=tokens * self.chunk * min(products[0], 1),
                bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
            ),
            interpret=bool(self.interpret),
            name=f"ssd_{self.name}_kernel",
        )(*(x for x, _ in ins))
