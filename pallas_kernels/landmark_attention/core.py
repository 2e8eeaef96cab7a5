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

Tiles are keys first, [.., blocks, period, queries]: a block is then a run of rows (sublanes on a TPU), its sums never
cross lanes, and what belongs to a query is a row vector. All functions are elementwise but for sums over those axes,
and in base 2, as in `pallas_kernels.block_sparse_attention.core`, whose `scores` makes the logits.

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

from pallas_kernels.block_sparse_attention.core import FLOOR, LOG2E, NEVER, Softmax


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


def kinds(slot_q: jax.Array, slot_k: jax.Array, period: int, seg_q: Any = None, seg_k: Any = None) -> Kinds:
    """From int32 slots, queries [.., 1, 1, r] and keys [.., n, P, 1], and their segments, likewise, or None."""
    block_q, block_k = slot_q // period, slot_k // period
    mark, earlier = slot_k % period == period - 1, block_k < block_q
    own = (block_k == block_q) & (slot_k <= slot_q)
    direct, inner = mark & earlier | ~mark & own, earlier & ~mark
    if seg_q is not None:
        same = (seg_q == seg_k) & (seg_q != 0)
        direct, inner = direct & same, inner & same
    return Kinds(mark, direct, inner)


def softmax_start(shape: tuple[int, ...]) -> Softmax:
    """Of the outer softmax: [.., 1, 1, r]."""
    return Softmax(jnp.full(shape, FLOOR, jnp.float32), jnp.zeros(shape, jnp.float32))


def softmax_step(state: Softmax, logits: jax.Array, kind: Kinds) -> tuple[Softmax, jax.Array, jax.Array]:
    """Takes in a tile's base-2 logits [.., n, P, r]; returns the state, the weights of the tile's values, relative to
    the state's maximum, and the factor that what was summed so far has to be multiplied with."""
    top = jnp.maximum(state.top, jnp.where(kind.direct, logits, NEVER).max((-3, -2), keepdims=True))
    outer, powers, norm = _weights(logits, kind, top)
    fade = jnp.exp2(state.top - top)
    total = state.total * fade + outer.sum((-3, -2), keepdims=True)
    return Softmax(top, total), jnp.where(kind.mark, 0.0, outer) + powers * (_gates(outer, kind) * norm), fade


def softmax_finish(state: Softmax, weighted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The output [.., V, r] and the natural log-sum-exp [.., 1, r] from the weighted sum of values [.., V, r]."""
    top, total = state.top[..., 0, :, :], state.total[..., 0, :, :]
    safe = jnp.where(total > 0, total, 1.0)
    return weighted / safe, jnp.where(total > 0, (top + jnp.log2(safe)) / LOG2E, -jnp.inf)


def past_step(state: Softmax, logits: jax.Array) -> tuple[Softmax, jax.Array, jax.Array]:
    """`softmax_step` for a tile of which every block is an earlier block of every query, in a third of the work."""
    powers, total, marks = _past(logits)
    top = jnp.maximum(state.top, marks.max(-3, keepdims=True))
    gates, fade = jnp.exp2(marks - top), jnp.exp2(state.top - top)
    return Softmax(top, state.total * fade + gates.sum(-3, keepdims=True)), powers * (gates / total), fade


class Gradients(NamedTuple):
    """Of a tile: the weights of its values, and d loss / d natural logit."""

    weights: jax.Array
    logits: jax.Array


def gradients(logits: jax.Array, kind: Kinds, lse: jax.Array, dweights: jax.Array, delta: jax.Array) -> Gradients:
    """From base-2 logits and ``dweights`` = v dout^T, [.., n, P, r], and lse (finite) and delta, [.., 1, 1, r]."""
    outer, powers, norm = _weights(logits, kind, lse * LOG2E)
    inner = powers * (_gates(outer, kind) * norm)
    mean = (powers * dweights).sum(-2, keepdims=True) * norm
    own = outer * (jnp.where(kind.mark, mean, dweights) - delta)
    return Gradients(jnp.where(kind.mark, 0.0, outer) + inner, own + inner * (dweights - mean))


def past_gradients(logits: jax.Array, lse: jax.Array, dweights: jax.Array, delta: jax.Array) -> Gradients:
    """`gradients` for a tile of which every block is an earlier block of every query."""
    powers, total, marks = _past(logits)
    gates = jnp.exp2(marks - lse * LOG2E)
    mean = (powers * dweights).sum(-2, keepdims=True) / total
    weights = powers * (gates / total)
    return Gradients(weights, jnp.where(_is_mark(logits), gates * (mean - delta), weights * (dweights - mean)))


def _past(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of blocks [.., n, P, r]: the tokens' powers relative to the block's greatest, 0 at the landmark, and their sum
    and the landmark's logit, [.., n, 1, r]."""
    tokens = jnp.where(_is_mark(logits), NEVER, logits)
    powers = jnp.exp2(tokens - tokens.max(-2, keepdims=True))
    return powers, powers.sum(-2, keepdims=True), logits[..., -1:, :]


def _is_mark(logits: jax.Array) -> jax.Array:
    """[.., 1, P, 1]: which slot of a block is the landmark's."""
    shape = (*(1,) * (logits.ndim - 2), logits.shape[-2], 1)
    return jax.lax.broadcasted_iota(jnp.int32, shape, logits.ndim - 2) == logits.shape[-2] - 1


def _weights(logits: jax.Array, kind: Kinds, top: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """2^(logits - top) of the outer softmax's pairs; of the tokens of earlier blocks, 2^(logits - their block's
    maximum) and the factor that makes each block's a softmax, [.., n, 1, r]. Both are 0 elsewhere."""
    peak = jnp.maximum(jnp.where(kind.inner, logits, NEVER).max(-2, keepdims=True), FLOOR)
    # A pair is of one kind at most, so one exponential serves both.
    exponent = jnp.where(kind.direct, logits - top, jnp.where(kind.inner, logits - peak, NEVER))
    powers = jnp.exp2(exponent)
    inner = jnp.where(kind.inner, powers, 0.0)
    total = inner.sum(-2, keepdims=True)
    return jnp.where(kind.direct, powers, 0.0), inner, 1 / jnp.where(total > 0, total, 1.0)


def _gates(outer: jax.Array, kind: Kinds) -> jax.Array:
    """The weight of each block's landmark, [.., n, 1, r]."""
    return jnp.where(kind.mark, outer, 0.0).sum(-2, keepdims=True)
