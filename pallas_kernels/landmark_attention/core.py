"""The contract of landmark attention over blocks of one length, and its mathematics on one tile.

Keys lie in blocks of ``period`` slots, the last of which is the block's landmark (Mohtashami and Jaggi 2023, Landmark
Attention, section 3). One softmax runs over the query's own tokens and the landmarks of earlier blocks,

    w_ij = exp(s_ij - lse_i)              j a token of i's block, up to i, or the landmark of an earlier block

and each earlier block shares its landmark's weight by a softmax of its own, over its tokens t,

    p_it = w_i,landmark(t) * a_it         a_it = exp(s_it) / sum of exp(s_iu) over the tokens u of t's block

A landmark carries no value: out_i = sum of p_ij v_j over tokens. A query never sees its own block's landmark, even if
it is that landmark. A tile that holds whole blocks needs nothing of other tiles but the running maximum and sum of w,
so this is causal attention with one more normaliser per block, in memory O(L). Backward, with dp_t = dout_i . v_t,
delta_i = dout_i . out_i and c = sum of a_it dp_t of a block:

    ds_own = w (dp - delta)      ds_t = p_t (dp_t - c)      ds_landmark = w (c - delta)

Tiles are `KEYS_FIRST`, [.., blocks, period, queries], unless ``axes`` says otherwise: a block is then a run of rows
(sublanes on a TPU), its sums never cross lanes, and what belongs to a query is a row vector. `ONE_BLOCK` is a tile of
one block, queries first, [queries, period]: on a GPU a row then lies in four threads. All functions are elementwise but
for sums over the axes of the keys, and in base 2, as in `pallas_kernels.block_sparse_attention.core`, whose `scores`
makes the logits. Shapes below are written keys first.

A back end is a module with four functions:

    supports(request: Request, period: int) -> str | None               why it cannot serve, or None
    blocks(request: Request, period: int) -> (block_q, block_k)         the shape of its tile; whole blocks of keys
    forward(q, k, v, places, options, request) -> (out, lse)
    backward(q, k, v, places, options, request, lse, delta, dout) -> (dq, dk, dv)

with arrays, lse and delta as in `block_sparse_attention.core`; lengths are padded to whole tiles (`Request.block_q`,
`block_k`). Padded keys lie behind every query; what padded queries give is thrown away (their dout and delta are 0).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_attention.core import FLOOR, LOG2E, NEVER, Softmax


class Axes(NamedTuple):
    """Of the keys of a tile: along its blocks, none if it is one block, and along the slots of a block."""

    blocks: tuple[int, ...]
    slots: int

    @property
    def both(self) -> tuple[int, ...]:
        return *self.blocks, self.slots


KEYS_FIRST = Axes((-3,), -2)
ONE_BLOCK = Axes((), -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where queries and keys stand. Key j is in slot j.

    Attributes:
      slots: int32 [1 or B, Lq], the slot of each query, below Lk and rising along a row but for padding; None where
        query i is in slot i + offset.
      segments: int32 ([B, Lq], [B, Lk]) or None; a query sees keys of its own segment, and none if that is 0.
      period: P, slots of a block.
      offset: see ``slots``.
    """

    slots: Any
    segments: tuple[Any, Any] | None
    period: int = dataclasses.field(metadata={"static": True})
    offset: int = dataclasses.field(default=0, metadata={"static": True})


def tile(period: int, size: int) -> int:
    """The least multiple of ``period`` that is at least ``size``."""
    return -(-size // period) * period


def reach(places: Places, length_q: int, length_k: int, block_q: int, block_k: int) -> tuple[Any, Any]:
    """Which tiles are causal, and in which every block is an earlier one of every query: bool [1 or B, rows, columns].

    Segments hide keys but no tile; where there are any, no tile counts as past. numpy where slots are not traced.
    """
    starts = np.arange(length_k // block_k) * block_k
    if places.slots is None:
        low = places.offset + np.arange(length_q // block_q)[None] * block_q
        high = low + block_q - 1
    else:
        slots = places.slots.reshape(-1, length_q // block_q, block_q)
        low, high = slots.min(-1), slots.max(-1)
    past = starts + block_k <= low[..., None] // places.period * places.period
    return starts <= high[..., None], past & (places.segments is None)


class Kinds(NamedTuple):
    """What each pair of a tile is, booleans that broadcast to it.

    Attributes:
      mark: the key is a landmark.
      direct: a pair of the outer softmax: a token of the query's own block, or the landmark of an earlier one.
      inner: a token of an earlier block.
    """

    mark: jax.Array
    direct: jax.Array
    inner: jax.Array


def kinds(
    slot_q: jax.Array, block_k: jax.Array, within: jax.Array, period: int, seg_q: Any = None, seg_k: Any = None
) -> Kinds:
    """From int32 slots of queries [.., 1, 1, r], blocks of keys [.., n, 1, 1] and slots within a block [.., 1, P, 1];
    segments are those of the queries, as their slots, and of the keys, [.., n, P, 1], or None."""
    block_q = slot_q // period
    mark, earlier = within == period - 1, block_k < block_q
    own = (block_k == block_q) & (within <= slot_q - block_q * period)
    direct, inner = mark & earlier | ~mark & own, earlier & ~mark
    if seg_q is not None:
        same = (seg_q == seg_k) & (seg_q != 0)
        direct, inner = direct & same, inner & same
    return Kinds(mark, direct, inner)


def softmax_start(shape: tuple[int, ...]) -> Softmax:
    """Of the outer softmax: [.., 1, 1, r]."""
    return Softmax(jnp.full(shape, FLOOR, jnp.float32), jnp.zeros(shape, jnp.float32))


def softmax_step(
    state: Softmax, logits: jax.Array, kind: Kinds, axes: Axes = KEYS_FIRST
) -> tuple[Softmax, jax.Array, jax.Array]:
    """Takes in a tile's base-2 logits [.., n, P, r]; returns the state, the weights of the tile's values, relative to
    the state's maximum, and the factor that what was summed so far has to be multiplied with."""
    top = jnp.maximum(state.top, jnp.where(kind.direct, logits, NEVER).max(axes.both, keepdims=True))
    powers, share = _weights(logits, kind, top, axes)
    fade = jnp.exp2(state.top - top)
    total = state.total * fade + jnp.where(kind.direct, powers, 0.0).sum(axes.both, keepdims=True)
    return Softmax(top, total), jnp.where(kind.mark, 0.0, powers * _factor(powers, share, kind, axes)), fade


def softmax_finish(state: Softmax, weighted: jax.Array, axes: Axes = KEYS_FIRST) -> tuple[jax.Array, jax.Array]:
    """The output [.., V, r] and the natural log-sum-exp [.., 1, r] from the weighted sum of values [.., V, r]."""
    top, total = state.top.squeeze(axes.blocks), state.total.squeeze(axes.blocks)
    safe = jnp.where(total > 0, total, 1.0)
    return weighted / safe, jnp.where(total > 0, (top + jnp.log2(safe)) / LOG2E, -jnp.inf)


def past_step(state: Softmax, logits: jax.Array, axes: Axes = KEYS_FIRST) -> tuple[Softmax, jax.Array, jax.Array]:
    """`softmax_step` for a tile of which every block is an earlier block of every query, in a third of the work."""
    powers, total, marks = _past(logits, axes)
    top = jnp.maximum(state.top, marks.max(axes.blocks, keepdims=True))
    gates, fade = jnp.exp2(marks - top), jnp.exp2(state.top - top)
    return Softmax(top, state.total * fade + gates.sum(axes.blocks, keepdims=True)), powers * (gates / total), fade


class Gradients(NamedTuple):
    """Of a tile: the weights of its values, and d loss / d natural logit."""

    weights: jax.Array
    logits: jax.Array


def gradients(
    logits: jax.Array, kind: Kinds, lse: jax.Array, dweights: jax.Array, delta: jax.Array, axes: Axes = KEYS_FIRST
) -> Gradients:
    """From base-2 logits and ``dweights`` = v dout^T, [.., n, P, r], and lse (finite) and delta, [.., 1, 1, r]."""
    powers, share = _weights(logits, kind, lse * LOG2E, axes)
    mean = jnp.where(kind.inner, powers * dweights, 0.0).sum(axes.slots, keepdims=True) * share
    weights = powers * _factor(powers, share, kind, axes)
    dlogits = weights * (jnp.where(kind.mark, mean, dweights) - jnp.where(kind.direct, delta, mean))
    return Gradients(jnp.where(kind.mark, 0.0, weights), dlogits)


def past_gradients(
    logits: jax.Array, lse: jax.Array, dweights: jax.Array, delta: jax.Array, axes: Axes = KEYS_FIRST
) -> Gradients:
    """`gradients` for a tile of which every block is an earlier block of every query."""
    powers, total, marks = _past(logits, axes)
    gates = jnp.exp2(marks - lse * LOG2E)
    mean = (powers * dweights).sum(axes.slots, keepdims=True) / total
    weights = powers * (gates / total)
    return Gradients(weights, jnp.where(_is_mark(logits, axes), gates * (mean - delta), weights * (dweights - mean)))


def _past(logits: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of blocks [.., n, P, r]: the tokens' powers relative to the block's greatest, 0 at the landmark, and their sum
    and the landmark's logit, [.., n, 1, r]."""
    mark, within = _is_mark(logits, axes), axes.slots
    tokens = jnp.where(mark, NEVER, logits)
    powers = jnp.exp2(tokens - tokens.max(within, keepdims=True))
    if axes == KEYS_FIRST:
        marks = logits[..., -1:, :]
    else:  # a tile in the registers of many threads has no slices
        marks = jnp.where(mark, logits, 0.0).sum(within, keepdims=True)
    return powers, powers.sum(within, keepdims=True), marks


def _is_mark(logits: jax.Array, axes: Axes) -> jax.Array:
    """[.., 1, P, 1]: which slot of a block is the landmark's."""
    axis = logits.ndim + axes.slots
    shape = [1] * logits.ndim
    shape[axis] = logits.shape[axis]
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis) == shape[axis] - 1


def _weights(logits: jax.Array, kind: Kinds, top: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """2^(logits - top) of the outer softmax's pairs, 2^(logits - block's maximum) of the tokens of earlier blocks, 0 of
    others; and the factor that makes each block's a softmax, [.., n, 1, r]."""
    peak = jnp.maximum(jnp.where(kind.inner, logits, NEVER).max(axes.slots, keepdims=True), FLOOR)
    # A pair is of one kind at most, so one exponential serves both.
    powers = jnp.exp2(jnp.where(kind.direct | kind.inner, logits - jnp.where(kind.direct, top, peak), NEVER))
    total = jnp.where(kind.inner, powers, 0.0).sum(axes.slots, keepdims=True)
    return powers, 1 / jnp.where(total > 0, total, 1.0)


def _factor(powers: jax.Array, share: jax.Array, kind: Kinds, axes: Axes) -> jax.Array:
    """From powers to weights: 1 for the outer softmax's, for others their part of their landmark's weight."""
    gates = jnp.where(kind.mark, powers, 0.0).sum(axes.slots, keepdims=True)
    return jnp.where(kind.direct, 1.0, gates * share)
