"""The three TPU kernels of block-sparse attention, as functions of one grid step.

Each keeps one block still (its row) while the blocks of the row's list move past: queries stay still for the output and
for dq, keys for dk and dv. A tile is [still, moving], so the moving side is read as it lies in memory, [1, moving], and
what the kernels know per still token (positions, the mask's data, log-sum-exp) is turned into columns once per row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.block_sparse_attention.core import (
    Options,
    Softmax,
    score_gradient,
    scores,
    softmax_finish,
    softmax_start,
    softmax_step,
    weights_again,
    widened,
)
from pallas_kernels.block_sparse_attention.tpu_steps import DEAD, FIRST, LAST, Fields

LANES = 128
Refs = dict[str, Any]  # arrays in fast memory, by name; one that a call does not need is absent


@dataclasses.dataclass(frozen=True)
class Walk:
    """How a grid (batch, head, step, share) finds its blocks; the words of the steps lie flat in scalar memory.

    With keys still, the head axis counts key heads, and the query heads that share one come from the share axis, or,
    where each has lists of its own, from the steps themselves.
    """

    fields: Fields
    batches: int  # Bm of the steps
    heads: int  # Hm of the steps
    length: int
    keys_still: bool
    group: int  # query heads per key head
    axis: int  # length of the share axis

    def at(self, b: Any, h: Any, s: Any) -> Any:
        return ((b if self.batches > 1 else 0) * self.heads + (h if self.heads > 1 else 0)) * self.length + s

    def find(self, b: Any, h: Any, s: Any, r: Any, places: Any) -> tuple[Any, Any, Any, Any]:
        """(query head, key head, row, index) of a step."""
        place = places[self.at(b, h, s)]
        row, share, index = self.fields.unpack(place)
        if not self.keys_still:
            return h, jax.lax.div(h, self.group) if self.group > 1 else h, row, index
        if self.axis > 1:  # a dead step stays with the last head of the step before
            share = jnp.where(place & DEAD == 0, r, self.axis - 1)
        return h * self.group + share, h, row, index


@dataclasses.dataclass(frozen=True)
class Frame:
    """What is static in a call.

    Attributes:
      walk: the way through the grid.
      see, at: of the mask and of the bias, which may be absent.
      options: of the call.
      block_q, block_k: the shape of a tile.
      offset: position of query 0 where positions are implicit.
      explicit: whether positions are given: then they are the first of the tokens' numbers.
      slopes: how many numbers a head's bias has.
      refresh: whether the still tokens' numbers change within a row (key data that differ by query head).
    """

    walk: Walk
    see: Callable[..., jax.Array]
    at: Callable[..., jax.Array] | None
    options: Options
    block_q: int
    block_k: int
    offset: int
    explicit: bool
    slopes: int
    refresh: bool = False


class Step(NamedTuple):
    """Of the present step: its flags, the query head, the first slots of its blocks, and its kind."""

    dead: Any
    first: Any
    last: Any
    head: Any
    start_q: Any
    start_k: Any
    kind: Any


def step_of(frame: Frame, scalars: Refs) -> Step:
    walk = frame.walk
    b, h, s, r = (pl.program_id(axis) for axis in range(4))
    place, kind = scalars["places"][walk.at(b, h, s)], scalars["kinds"][walk.at(b, h, s)]
    head, _, row, index = walk.find(b, h, s, r, scalars["places"])
    first, last = place & FIRST != 0, place & LAST != 0
    if walk.axis > 1:
        first, last = first & (r == 0), last & (r == walk.axis - 1)
    row_q, row_k = (index, row) if walk.keys_still else (row, index)
    return Step(place & DEAD != 0, first, last, head, row_q * frame.block_q, row_k * frame.block_k, kind)


def dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """The product of two matrices over these axes, summed in float32; of float32 without a loss of bits."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    contract = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, precision=precision, preferred_element_type=jnp.float32)


def columns(row: jax.Array) -> jax.Array:
    """[1, n] as [n, LANES], each lane the same: the layout in which a number per still token is stored."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def keep_columns(source: Any, target: Any) -> None:
    """Turns each of the rows of ``source`` [n, still] into columns, ``target`` [n, still, LANES]."""
    for i in range(source.shape[0]):
        target[i] = columns(source[i : i + 1, :])


def visit(step: Step, tile: Callable[[bool], None]) -> None:
    """Runs ``tile(full)`` for a live step: a full tile is spared its mask."""
    full = step.kind & 1 != 0

    @pl.when(~step.dead & full)
    def _() -> None:
        tile(True)

    @pl.when(~step.dead & ~full)
    def _() -> None:
        tile(False)


class Tile(NamedTuple):
    """Base-2 logits of a tile, d(natural logit) / d(q k^T), and the pull-back of the bias to its numbers, if asked."""

    logits: jax.Array
    slope: jax.Array | float
    pull: Callable[[jax.Array], Any] | None


def tile_of(frame: Frame, step: Step, scalars: Refs, ins: Refs, scratch: Refs, full: bool, pull: bool = False) -> Tile:
    keys_still = frame.walk.keys_still
    a, b = (ins["k"], ins["q"]) if keys_still else (ins["q"], ins["k"])
    qk = dot(a[...], b[...], 1, 1)

    # numbers of the tokens: columns of the still side, rows of the moving side
    own = [scratch["still"][i][:, :1] for i in range(scratch["still"].shape[0])] if "still" in scratch else []
    name = "tokens_q" if keys_still else "tokens_k"
    others = [ins[name][i : i + 1, :] for i in range(ins[name].shape[0])] if name in ins else []
    of_q, of_k = (others, own) if keys_still else (own, others)
    if frame.explicit:
        pos_q, pos_k, of_q, of_k = of_q[0], of_k[0], of_q[1:], of_k[1:]
    else:
        slots = [jax.lax.broadcasted_iota(jnp.int32, (qk.shape[0], 1), 0)]
        slots += [jax.lax.broadcasted_iota(jnp.int32, (1, qk.shape[1]), 1)]
        pos_q, pos_k = (x + start for x, start in zip(slots[:: -1 if keys_still else 1], step[4:6], strict=True))
        pos_q = pos_q + frame.offset

    bias = pulled = seen = None
    at = frame.at
    if at is not None:
        numbers = tuple(scalars["bias"][step.head * frame.slopes + i] for i in range(frame.slopes))
        if pull:  # a number per moving token: the gradient's sum over the moving side is left for the end
            numbers = tuple(jnp.full((1, qk.shape[1]), x) for x in numbers)
            bias, pulled = jax.vjp(lambda x: jnp.broadcast_to(at(x, pos_q, pos_k), qk.shape), numbers)
        else:
            bias = at(numbers, pos_q, pos_k)
    if not full:
        values = tuple(ref[0] for name, ref in scalars.items() if name.startswith("number"))
        seen = frame.see(values, pos_q, pos_k, tuple(of_q), tuple(of_k), step.kind)
    logits, slope = scores(qk, frame.options, bias, seen)
    return Tile(logits, slope, pulled)


def forward_kernel(frame: Frame, scalars: Refs, ins: Refs, outs: Refs, scratch: Refs) -> None:
    """out and lse of a block of queries. Scratch: top and total [bq, n] (`Softmax`), sums [bq, V], still."""
    step = step_of(frame, scalars)

    @pl.when(step.first)
    def _() -> None:
        start = softmax_start(scratch["top"].shape)
        scratch["top"][...], scratch["total"][...] = start.top, start.total
        scratch["sums"][...] = jnp.zeros_like(scratch["sums"])
        if "still" in scratch:
            keep_columns(ins["tokens_q"], scratch["still"])

    def tile(full: bool) -> None:
        logits = tile_of(frame, step, scalars, ins, scratch, full).logits
        state, weights, fade = softmax_step(Softmax(scratch["top"][...], scratch["total"][...]), logits)
        scratch["top"][...], scratch["total"][...] = state.top, state.total
        v = ins["v"][...]
        faded = scratch["sums"][...] * widened(fade, v.shape[1])
        scratch["sums"][...] = faded + dot(weights.astype(v.dtype), v, 1, 0)

    visit(step, tile)

    @pl.when(step.last)
    def _() -> None:
        state = Softmax(scratch["top"][...], scratch["total"][...])
        out, lse = softmax_finish(state, scratch["sums"][...])
        outs["out"][...] = out.astype(outs["out"].dtype)
        outs["lse"][...] = jnp.broadcast_to(lse, (lse.shape[0], LANES)).T[:1]


def gradient_of(frame: Frame, tile: Tile, dweights: jax.Array, lse: jax.Array, delta: jax.Array) -> tuple[Any, ...]:
    """The weights of a tile again, d loss / d logits, and d loss / d (q k^T) but for `last_factor`."""
    weights = weights_again(tile.logits, lse)
    dlogits = score_gradient(weights, dweights, delta)
    return weights, dlogits, dlogits * tile.slope if frame.options.soft_cap else dlogits


def last_factor(frame: Frame) -> float:
    """What is left to multiply dq and dk with when they are summed: a constant slope need not touch every score."""
    return 1.0 if frame.options.soft_cap else frame.options.scale


def queries_kernel(frame: Frame, scalars: Refs, ins: Refs, outs: Refs, scratch: Refs) -> None:
    """dq of a block of queries, and dnumbers [n, bk] of a head, a sum over its queries for each slot of a key block.

    Scratch: sums [bq, K], stats [2, bq, LANES] (lse and delta), still.
    """
    step = step_of(frame, scalars)

    @pl.when(step.first)
    def _() -> None:
        scratch["sums"][...] = jnp.zeros_like(scratch["sums"])
        keep_columns(ins["stats"], scratch["stats"])
        if "still" in scratch:
            keep_columns(ins["tokens_q"], scratch["still"])

    if "dnumbers" in outs:

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            outs["dnumbers"][...] = jnp.zeros_like(outs["dnumbers"])

    def tile(full: bool) -> None:
        scored = tile_of(frame, step, scalars, ins, scratch, full, pull="dnumbers" in outs)
        dweights = dot(ins["dout"][...], ins["v"][...], 1, 1)
        lse, delta = (widened(scratch["stats"][i], frame.block_k) for i in range(2))
        _, dlogits, dscores = gradient_of(frame, scored, dweights, lse, delta)
        k = ins["k"][...]
        scratch["sums"][...] += dot(dscores.astype(k.dtype), k, 1, 0)
        if scored.pull is not None:
            for i, x in enumerate(scored.pull(dlogits)[0]):
                outs["dnumbers"][i : i + 1, :] += x

    visit(step, tile)

    @pl.when(step.last)
    def _() -> None:
        outs["dq"][...] = (scratch["sums"][...] * last_factor(frame)).astype(outs["dq"].dtype)


def keys_kernel(frame: Frame, scalars: Refs, ins: Refs, outs: Refs, scratch: Refs) -> None:
    """dk and dv of a block of keys, summed over the query heads that share it; a tile is [bk, bq].

    Scratch: dk [bk, K], dv [bk, V], still.
    """
    step = step_of(frame, scalars)

    @pl.when(step.first)
    def _() -> None:
        for name in ("dk", "dv"):
            scratch[name][...] = jnp.zeros_like(scratch[name])

    if "still" in scratch:

        @pl.when(step.first | frame.refresh)
        def _() -> None:
            keep_columns(ins["tokens_k"], scratch["still"])

    def tile(full: bool) -> None:
        scored = tile_of(frame, step, scalars, ins, scratch, full)
        q, dout = ins["q"][...], ins["dout"][...]
        dweights = dot(ins["v"][...], dout, 1, 1)
        weights, _, dscores = gradient_of(frame, scored, dweights, ins["stats"][0:1, :], ins["stats"][1:2, :])
        scratch["dv"][...] += dot(weights.astype(dout.dtype), dout, 1, 0)
        scratch["dk"][...] += dot(dscores.astype(q.dtype), q, 1, 0)

    visit(step, tile)

    @pl.when(step.last)
    def _() -> None:
        outs["dk"][...] = (scratch["dk"][...] * last_factor(frame)).astype(outs["dk"].dtype)
        outs["dv"][...] = scratch["dv"][...].astype(outs["dv"].dtype)
