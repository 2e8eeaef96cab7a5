"""The selective scan on TPU: a grid over (batch, channels, chunks) whose last axis runs in order, with the state in
fast memory.

Channels lie along lanes and the N numbers of a state along sublanes, so a token is a few products of whole vectors, and
its input and output are rows. What it reads of b and c are columns; each chunk first spreads them over the lanes, by
state, [N, tokens, lanes], and a token's [N, lanes] is then one load with a stride. Their gradients are collected in the
same way and summed over lanes when the chunk is done. The backward pass walks the chunks from the last to the first and
makes the states of one again in fast memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.selective_scan import core
from pallas_kernels.selective_scan.core import Arrays, Request, Sizes

LANES, SUBLANES = 128, 8
CHUNK = 128
CHANNELS = 512  # of a block, at most
DTYPES = ("float32", "bfloat16")
MOST_STATES = 32
FAST_MEMORY = 32 * 2**20  # bytes a kernel may take; chips have 64 MiB and more, but v4 16


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    if request.platform != "tpu" and not request.interpret:
        return f"needs a TPU, not {request.platform}"
    for dtype in request.dtypes:
        if dtype not in DTYPES:
            return f"dtype {dtype} is not one of {', '.join(DTYPES)}"
    if request.states > MOST_STATES:
        return f"states of {request.states} numbers are over {MOST_STATES}"
    return None


def sizes(request: Request) -> Sizes:
    """The most channels that pad a group no further than whole lanes do."""
    least = -(-request.width // LANES) * LANES
    channels = next(n for n in (CHANNELS, CHANNELS // 2, LANES) if least % n == 0)
    return Sizes(CHUNK, channels, -(-request.states // SUBLANES) * SUBLANES)


def forward(
    arrays: Arrays, state: jax.Array, sizes: Sizes, interpret: Any, keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The contract of `core`; ``starts`` are [B, chunks, N, C]."""
    call = _Call(arrays, sizes, interpret, backwards=False)

    def kernel(u, delta, a, b, c, first, y, final, *rest):
        starts, (state, us, deltas, ys, bs, cs) = rest[:-6], rest[-6:]
        pl.when(pl.program_id(2) == 0)(lambda: _copy(first, state))
        for ref in starts:
            ref[...] = state[...]
        call.stack(u, us)
        call.stack(delta, deltas)
        call.spread(b, bs)
        call.spread(c, cs)

        def token(t: Any, states: list[jax.Array]) -> list[jax.Array]:
            b_t, c_t, stays = call.column(bs, t), call.column(cs, t), call.stays(bs, t)
            after = []
            for row, lanes, h in zip(call.row(t), call.lanes, states, strict=True):
                h = core.forward(h, us[row], deltas[row], a[:, lanes], b_t, stays)
                ys[row] = (h * c_t).sum(0, keepdims=True)
                after.append(h)
            return after

        states = call.walk(token, [state[:, lanes] for lanes in call.lanes])
        for lanes, h in zip(call.lanes, states, strict=True):
            state[:, lanes] = h
        call.unstack(ys, y)
        pl.when(pl.program_id(2) == call.chunks - 1)(lambda: _copy(state, final))

    state = state.swapaxes(1, 2)
    outs = [call.channels(jax.ShapeDtypeStruct(arrays.u.shape, arrays.u.dtype)), call.state(state)]
    if keep:
        outs.append(call.states(jax.ShapeDtypeStruct((state.shape[0], call.chunks, *state.shape[1:]), jnp.float32)))
    scratch = [call.tile, call.rows, call.rows, call.rows, call.spread_b, call.spread_c]
    found = call.run(kernel, "forward", 7, [*call.operands(arrays), call.state(state)], outs, scratch)
    return found[0], found[1].swapaxes(1, 2), found[2] if keep else None


def backward(
    arrays: Arrays, starts: jax.Array, sizes: Sizes, interpret: Any, dy: jax.Array, dfinal: jax.Array
) -> tuple[Arrays, jax.Array]:
    """The contract of `core`."""
    call = _Call(arrays, sizes, interpret, backwards=True)
    count = sizes.states

    def kernel(u, delta, a, b, c, start, dy, dfinal, du, ddelta, da, db, dc, dfirst, *scratch):
        dstate, das, us, deltas, dys, dus, ddeltas, bs, cs, dbs, dcs, before = scratch

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            dstate[...], das[...] = dfinal[...], jnp.zeros(das.shape, jnp.float32)

        for source, target in ((u, us), (delta, deltas), (dy, dys)):
            call.stack(source, target)
        call.spread(b, bs)
        call.spread(c, cs)
        of = lambda t: pl.ds(pl.multiple_of(t * count, SUBLANES), count)

        def again(t: Any, states: list[jax.Array]) -> list[jax.Array]:
            b_t, stays, after = call.column(bs, t), call.stays(bs, t), []
            for row, lanes, h in zip(call.row(t), call.lanes, states, strict=True):
                before[of(t), lanes] = h
                after.append(core.forward(h, us[row], deltas[row], a[:, lanes], b_t, stays))
            return after

        def token(back: Any, carry: Any) -> Any:
            t = CHUNK - 1 - back
            b_t, c_t, stays = call.column(bs, t), call.column(cs, t), call.stays(bs, t)
            after, of_b, of_c = [], jnp.zeros(b_t.shape, jnp.float32), jnp.zeros(c_t.shape, jnp.float32)
            for row, lanes, (dh, da_sum) in zip(call.row(t), call.lanes, carry, strict=True):
                found = core.backward(
                    before[of(t), lanes], us[row], deltas[row], a[:, lanes], b_t, c_t, stays, dys[row], dh, axis=0
                )
                dus[row], ddeltas[row] = found.u, found.delta
                of_b, of_c = of_b + found.b, of_c + found.c
                after.append((found.state, da_sum + found.a))
            dbs[call.at(t), :], dcs[call.at(t), :] = of_b, of_c
            return after

        call.walk(again, [start[:, lanes] for lanes in call.lanes])
        found = call.walk(token, [(dstate[:, lanes], das[:, lanes]) for lanes in call.lanes])
        for lanes, (dh, da_sum) in zip(call.lanes, found, strict=True):
            dstate[:, lanes], das[:, lanes] = dh, da_sum
        call.unstack(dus, du)
        call.unstack(ddeltas, ddelta)
        db[...], dc[...] = call.gathered(dbs), call.gathered(dcs)

        @pl.when(pl.program_id(2) == call.chunks - 1)
        def _() -> None:
            dfirst[...], da[...] = dstate[...], das[...]

    some = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    batch, length, channels = arrays.u.shape
    dfinal = dfinal.swapaxes(1, 2)
    ins = [*call.operands(arrays), call.states(starts), call.channels(dy), call.state(dfinal)]
    rows, state = call.channels(some(*arrays.u.shape)), call.state(some(*dfinal.shape))
    column = call.columns(some(batch, channels // sizes.channels, length, count), 1)
    scratch = [call.tile, call.tile, *[call.rows] * 5, call.spread_b, *[call.spread_c] * 3]
    scratch.append((CHUNK * count, sizes.channels))
    du, ddelta, da, db, dc, dfirst = call.run(
        kernel, "backward", 24, ins, [rows, rows, state, column, column, state], scratch
    )
    db, dc = (x.reshape(batch, arrays.b.shape[1], -1, length, count).sum(2) for x in (db, dc))
    return Arrays(du, ddelta, da.swapaxes(1, 2), db, dc, None), dfirst.swapaxes(1, 2)


def _copy(source: Any, target: Any) -> None:
    target[...] = source[...]


Operand = tuple[Any, pl.BlockSpec]  # an array, or the shape of a result, and how the grid cuts it


class _Call:
    """One kernel: its grid (batch, block of channels, chunk), the blocks of its operands, and the launch.

    Attributes:
      chunks: how many there are.
      lanes: the slices of a block's channels that fill the lanes of a vector.
      tile, rows, spread_b, spread_c: shapes in fast memory: of states, of what a chunk has of each channel (`stack`),
        and of a chunk's b (with ``stays`` behind) and c over the lanes.
    """

    def __init__(self, arrays: Arrays, sizes: Sizes, interpret: Any, backwards: bool) -> None:
        self.batch, length, channels = arrays.u.shape
        self.count, self.block, self.interpret, self.backwards = sizes.states, sizes.channels, interpret, backwards
        self.chunks, self.blocks = length // CHUNK, channels // self.block
        self.share = self.blocks // arrays.b.shape[1]  # blocks of a group
        self.packed = arrays.stays is not None
        self.lanes = [pl.ds(i, LANES) for i in range(0, self.block, LANES)]
        self.tile, self.rows = (self.count, self.block), (CHUNK * len(self.lanes), LANES)
        self.spread_b, self.spread_c = ((n * CHUNK, LANES) for n in (self.count + self.packed, self.count))

    def operands(self, arrays: Arrays) -> list[Operand]:
        """u, delta, a, b and c; where there is ``stays``, it is one column more of b."""
        b = arrays.b
        if arrays.stays is not None:
            stays = jnp.broadcast_to(arrays.stays[:, None, :, None], (*b.shape[:3], 1)).astype(b.dtype)
            b = jnp.concatenate([b, stays], 3)
        a = arrays.a.T, pl.BlockSpec((self.count, self.block), lambda b, i, c: (0, i))
        columns = [self.columns(x, self.share) for x in (b, arrays.c)]
        return [self.channels(arrays.u), self.channels(arrays.delta), a, *columns]

    def _at(self, c: Any) -> Any:
        return self.chunks - 1 - c if self.backwards else c

    def channels(self, x: Any) -> Operand:
        """[B, L, C]."""
        return x, pl.BlockSpec((None, CHUNK, self.block), lambda b, i, c: (b, self._at(c), i))

    def columns(self, x: Any, share: int) -> Operand:
        """[B, groups of ``share`` blocks, L, N]."""
        shape = (None, None, CHUNK, x.shape[3])
        return x, pl.BlockSpec(shape, lambda b, i, c: (b, jax.lax.div(i, share), self._at(c), 0))

    def state(self, x: Any) -> Operand:
        """[B, N, C], one for all chunks."""
        return x, pl.BlockSpec((None, self.count, self.block), lambda b, i, c: (b, 0, i))

    def states(self, x: Any) -> Operand:
        """[B, chunks, N, C], one of each chunk."""
        return x, pl.BlockSpec((None, None, self.count, self.block), lambda b, i, c: (b, self._at(c), 0, i))

    # The body of a kernel.

    def stack(self, source: Any, target: Any) -> None:
        """A chunk's channels [tokens, C] as [C / lanes * tokens, lanes], of which a single row can be read."""
        for i, lanes in enumerate(self.lanes):
            target[i * CHUNK : (i + 1) * CHUNK, :] = source[:, lanes].astype(jnp.float32)

    def unstack(self, source: Any, target: Any) -> None:
        """The inverse."""
        for i, lanes in enumerate(self.lanes):
            target[:, lanes] = source[i * CHUNK : (i + 1) * CHUNK, :].astype(target.dtype)

    def row(self, t: Any) -> list[Any]:
        """Where a token is in what was stacked, for each of the slices of channels."""
        return [(pl.ds(i * CHUNK + t, 1), slice(None)) for i in range(len(self.lanes))]

    def spread(self, source: Any, target: Any) -> None:
        """A chunk's columns [tokens, n] over the lanes, [n * tokens, lanes]."""
        tile = source[...].astype(jnp.float32)
        for i in range(tile.shape[1]):
            target[i * CHUNK : (i + 1) * CHUNK, :] = jnp.broadcast_to(tile[:, i : i + 1], (CHUNK, LANES))

    def gathered(self, source: Any) -> jax.Array:
        """The sums over the lanes of [N * tokens, lanes], as [tokens, N]."""
        place = jax.lax.broadcasted_iota(jnp.int32, (CHUNK, self.count), 1)
        found = jnp.zeros((CHUNK, self.count), jnp.float32)
        for i in range(self.count):
            sums = source[i * CHUNK : (i + 1) * CHUNK, :].sum(1, keepdims=True)
            found = jnp.where(place == i, sums, found)
        return found

    def at(self, t: Any) -> Any:
        """Where a token's numbers are in what was `spread`."""
        return pl.ds(t, self.count, stride=CHUNK)

    def column(self, source: Any, t: Any) -> jax.Array:
        """A token's b or c, [N, lanes], each lane the same."""
        return source[self.at(t), :]

    def stays(self, source: Any, t: Any) -> jax.Array | None:
        """[1, lanes], each lane the same."""
        return source[pl.ds(self.count * CHUNK + t, 1), :] if self.packed else None

    def walk(self, token: Callable[..., Any], carry: Any) -> Any:
        """``carry = token(t, carry)`` over the tokens of a chunk."""

        def several(i: Any, carry: Any) -> Any:
            for j in range(SUBLANES):
                carry = token(i * SUBLANES + j, carry)
            return carry

        return jax.lax.fori_loop(0, CHUNK // SUBLANES, several, carry)

    def run(
        self,
        kernel: Callable[..., None],
        name: str,
        work: int,
        ins: list[Operand],
        outs: list[Operand],
        scratch: list[tuple[int, int]],
    ) -> Any:
        """The results of ``kernel(*ins, *outs, *scratch)``; ``work`` is its operations per token and state number."""
        states = self.batch * self.chunks * CHUNK * self.blocks * self.block * self.count
        arrays = [x for x, _ in (*ins, *outs)]
        return pl.pallas_call(
            kernel,
            grid=(self.batch, self.blocks, self.chunks),
            in_specs=[spec for _, spec in ins],
            out_specs=[spec for _, spec in outs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=FAST_MEMORY
            ),
            cost_estimate=pl.CostEstimate(
                flops=work * states,
                transcendentals=states * (2 if self.backwards else 1),
                bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
            ),
            interpret=self.interpret,
            name=f"selective_scan_{name}_kernel",
        )(*(x for x, _ in ins))
