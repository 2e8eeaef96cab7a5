"""The selective scan as Triton-style Pallas kernels: one program a block of channels, its states in registers.

A program walks pieces of a few tokens, written out: the loads of all tokens of a piece then start before the first is
needed. The backward pass walks them from the last to the first and makes the states of one again, in registers too,
which is why pieces are short; the forward pass keeps the state before each chunk of some pieces, from which the
backward pass walks to the one it needs. The gradients of b and c are summed over the blocks of channels once the kernel
is done.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.selective_scan import core
from pallas_kernels.selective_scan.core import Arrays, Request, Sizes

DTYPES = ("float32", "bfloat16", "float16")
PIECE = 8  # tokens whose states fit in registers
PIECES = 2  # of a chunk
CHUNK = PIECES * PIECE
WARPS = 4
TILE = 512  # numbers of state of a program; a thread then has four, for each token of a piece
MOST_STATES = 64


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    if request.platform != "gpu" and not request.interpret:
        return f"needs a GPU, not {request.platform}"
    for dtype in request.dtypes:
        if dtype not in DTYPES:
            return f"dtype {dtype} is not one of {', '.join(DTYPES)}"
    if request.states > MOST_STATES:
        return f"states of {request.states} numbers are over {MOST_STATES}"
    return None


def sizes(request: Request) -> Sizes:
    """Powers of two, which Triton's tiles want."""
    states = 1 << (request.states - 1).bit_length()
    return Sizes(CHUNK, min(128, TILE // states), states)


def forward(
    arrays: Arrays, state: jax.Array, sizes: Sizes, interpret: Any, keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The contract of `core`; ``starts`` are [B, chunks, C, N]."""
    call = _Call(arrays, sizes, interpret)

    def kernel(u, delta, a, b, c, stays, first, y, final, *starts):
        a = a[...]

        def step(i: Any, h: jax.Array) -> jax.Array:
            for ref in starts:
                pl.when(lax.rem(i, PIECES) == 0)(functools.partial(_store, ref, lax.div(i, PIECES), h))
            for t, (u_t, delta_t, b_t, c_t, stays_t) in call.tokens(i, u, delta, b, c, stays):
                h = core.forward(h, u_t, delta_t, a, b_t, stays_t)
                y[t, :] = (h * c_t).sum(1).astype(y.dtype)
            return h

        final[...] = lax.fori_loop(0, call.pieces, step, first[...])

    outs = [call.channels(jax.ShapeDtypeStruct(arrays.u.shape, arrays.u.dtype)), call.state(state)]
    if keep:
        outs.append(call.states(jax.ShapeDtypeStruct((state.shape[0], call.chunks, *state.shape[1:]), jnp.float32)))
    found = call.run(kernel, "forward", 7, [*call.operands(arrays), call.state(state)], outs)
    return found[0], found[1], found[2] if keep else None


def backward(
    arrays: Arrays, starts: jax.Array, sizes: Sizes, interpret: Any, dy: jax.Array, dfinal: jax.Array
) -> tuple[Arrays, jax.Array]:
    """The contract of `core`."""
    call = _Call(arrays, sizes, interpret)

    def kernel(u, delta, a, b, c, stays, starts, dy, dfinal, du, ddelta, da, db, dc, dfirst):
        a = a[...]

        def again(i: Any, h: jax.Array) -> jax.Array:
            for _, (u_t, delta_t, b_t, _, stays_t) in call.tokens(i, u, delta, b, c, stays):
                h = core.forward(h, u_t, delta_t, a, b_t, stays_t)
            return h

        def step(back: Any, carry: Any) -> Any:
            i = call.pieces - 1 - back
            (dh, da_sum), before = carry, []
            chunk = lax.div(i, PIECES)
            h = lax.fori_loop(chunk * PIECES, i, again, starts[chunk])
            tokens = call.tokens(i, u, delta, b, c, stays)
            dys = [dy[t, :].astype(jnp.float32)[:, None] for t, _ in tokens]
            for _, (u_t, delta_t, b_t, _, stays_t) in tokens:
                before.append(h)
                h = core.forward(h, u_t, delta_t, a, b_t, stays_t)
            for h, dy_t, (t, (u_t, delta_t, b_t, c_t, stays_t)) in zip(
                before[::-1], dys[::-1], tokens[::-1], strict=True
            ):
                found = core.backward(h, u_t, delta_t, a, b_t, c_t, stays_t, dy_t, dh, axis=1)
                du[t, :], ddelta[t, :] = found.u.reshape(call.block), found.delta.reshape(call.block)
                db[t, :], dc[t, :] = found.b.sum(0), found.c.sum(0)
                dh, da_sum = found.state, da_sum + found.a
            return dh, da_sum

        dfirst[...], da[...] = lax.fori_loop(0, call.pieces, step, (dfinal[...], jnp.zeros(a.shape, jnp.float32)))

    some = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    (batch, length, channels), count = arrays.u.shape, sizes.states
    rows, state = call.channels(some(*arrays.u.shape)), call.state(some(*dfinal.shape))
    part = call.part(some(batch, channels // sizes.channels, length, count))
    ins = [*call.operands(arrays), call.states(starts), call.channels(dy), call.state(dfinal)]
    du, ddelta, da, db, dc, dfirst = call.run(kernel, "backward", 24, ins, [rows, rows, state, part, part, state])
    db, dc = (x.reshape(batch, arrays.b.shape[1], -1, length, count).sum(2) for x in (db, dc))
    return Arrays(du, ddelta, da, db, dc, None), dfirst


def _store(ref: Any, i: Any, value: jax.Array) -> None:
    ref[i] = value


Operand = tuple[Any, pl.BlockSpec]  # an array, or the shape of a result, and the block of it that a program sees


class _Call:
    """One kernel: its grid (block of channels, batch), the blocks of its operands, and the launch."""

    def __init__(self, arrays: Arrays, sizes: Sizes, interpret: Any) -> None:
        batch, self.length, channels = arrays.u.shape
        self.block, self.count, self.chunks = sizes.channels, sizes.states, self.length // CHUNK
        self.pieces = self.chunks * PIECES
        self.share = channels // self.block // arrays.b.shape[1]  # blocks of a group
        self.grid, self.interpret = (channels // self.block, batch), interpret
        self.packed = arrays.stays is not None

    def operands(self, arrays: Arrays) -> list[Operand]:
        """u, delta, a, b, c, and ``stays``, of which the kernel reads nothing where there is none."""
        a = arrays.a, pl.BlockSpec((self.block, self.count), lambda i, b: (i, 0))
        of_group = pl.BlockSpec((None, None, self.length, self.count), lambda i, b: (b, lax.div(i, self.share), 0, 0))
        stays = jnp.ones((arrays.u.shape[0], 1), jnp.float32) if arrays.stays is None else arrays.stays
        row = stays, pl.BlockSpec((None, stays.shape[1]), lambda i, b: (b, 0))
        return [
            self.channels(arrays.u),
            self.channels(arrays.delta),
            a,
            (arrays.b, of_group),
            (arrays.c, of_group),
            row,
        ]

    def channels(self, x: Any) -> Operand:
        """[B, L, C]."""
        return x, pl.BlockSpec((None, self.length, self.block), lambda i, b: (b, 0, i))

    def state(self, x: Any) -> Operand:
        """[B, C, N]."""
        return x, pl.BlockSpec((None, self.block, self.count), lambda i, b: (b, i, 0))

    def states(self, x: Any) -> Operand:
        """[B, chunks, C, N]."""
        return x, pl.BlockSpec((None, self.chunks, self.block, self.count), lambda i, b: (b, 0, i, 0))

    def part(self, x: Any) -> Operand:
        """[B, blocks, L, N], what a program gives to a sum."""
        return x, pl.BlockSpec((None, None, self.length, self.count), lambda i, b: (b, i, 0, 0))

    def tokens(self, i: Any, u: Any, delta: Any, b: Any, c: Any, stays: Any) -> list[tuple[Any, tuple[Any, ...]]]:
        """Those of a piece: where they are, u and delta [C, 1], b and c [1, N], and ``stays``, a number or None."""
        column = lambda ref, t: ref[t, :].astype(jnp.float32)[:, None]
        row = lambda ref, t: ref[t, :].astype(jnp.float32)[None]
        return [
            (t, (column(u, t), column(delta, t), row(b, t), row(c, t), stays[t] if self.packed else None))
            for t in (i * PIECE + j for j in range(PIECE))
        ]

    def run(self, kernel: Callable[..., None], name: str, work: int, ins: list[Operand], outs: list[Operand]) -> Any:
        """The results of ``kernel(*ins, *outs)``; ``work`` are its operations per token and number of state."""
        states = math.prod(self.grid) * self.length * self.block * self.count
        arrays = [x for x, _ in (*ins, *outs)]
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[spec for _, spec in ins],
            out_specs=[spec for _, spec in outs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outs],
            compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
            cost_estimate=pl.CostEstimate(
                flops=work * states,
                transcendentals=states * (2 + (PIECES - 1) // 2 if name == "backward" else 1),
                bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
            ),
            interpret=bool(self.interpret),
            name=f"selective_scan_{name}_kernel",
        )(*(x for x, _ in ins))
