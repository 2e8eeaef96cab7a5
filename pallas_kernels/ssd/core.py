"""The contract of a back end, and the mathematics of one chunk.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = q_t^T S_t

Within a chunk, with c the running sum of g from its start (Dao and Gu 2024, Mamba-2, section 6),

    o_i = exp(c_i) q_i^T S_start + sum over j <= i of exp(c_i - c_j) (q_i^T k_j) v_j
    S_end = exp(c_last) S_start + sum of exp(c_last - c_j) k_j v_j^T

where two tokens meet, or a token meets S_start or S_end, only within an epoch. Every exponent is <= 0. What a token
brings is made by `tokens_of` before the kernels run, and d loss / d g from d loss / d c after them (`decay_gradient`).

A back end is a module with four functions:

    supports(request: Request) -> str | None                            why it cannot serve, or None
    chunk(dtype) -> int                                                 tokens of a chunk
    forward(q, k, v, tokens, state, interpret, keep) -> (out, final, starts)
    backward(q, k, v, tokens, starts, interpret, dout, dfinal) -> (dq, dk, dv, dsums, dstate)

with q, k [B, G, L, K], v [B, H, L, V] of one dtype (head h reads group h // (H / G)), L a multiple of the chunk,
``tokens`` of `tokens_of`, states float32 [B, H, K, V]; out as v; ``starts`` the states before each chunk in the arrays'
dtype, [B, H, chunks, K, V] but for the back end's own padding, or None unless ``keep``; dsums float32 [B, H, L] is
d loss / d c; other gradients as their arrays.

The functions on a tile take the chunk's q, k, v [C, .], and numbers of its tokens as columns [C, 1] or rows [1, C].
``dot(a, b, axis_a, axis_b)`` is the back end's product over these axes, of one dtype, summed in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

LOG2E = math.log2(math.e)
LEAST = -160.0  # a power of 2 that is 0 in float32: stronger decays need no other number
GRAIN = 64.0  # coarse sums are multiples of 1 / GRAIN, so exact up to 2^24 / GRAIN, chunks of 1600 tokens
NEVER = -1e30

COARSE, FINE, START, END, EPOCH = range(5)  # rows of `tokens_of`

Dot = Callable[[jax.Array, jax.Array, int, int], jax.Array]


@dataclasses.dataclass(frozen=True)
class Request:
    """A call as back ends judge it; ``dtype`` is of the products, ``interpret`` whether an interpreter runs it."""

    platform: str
    dtype: str
    heads: int
    groups: int
    width: int
    value_width: int
    interpret: bool = False


def tokens_of(log_decay: jax.Array, epochs: jax.Array | None, chunk: int) -> jax.Array:
    """Float32 [B, H, 4 or 5, L], rows `COARSE`, ... of each token, from log decays [B, H, L] and epochs [B, L].

    The running sum c is kept in base 2 and in two parts. A sum in one float32 of 100 tokens that fade by e^-100 each
    has lost what tokens near its end differ by; differences of coarse parts are exact, and fine parts are small.
    START is exp(c_i), the factor of S_start in what token i reads, and at the last token in S_end; END is
    exp(c_last - c_j); both are 0 where an epoch begins between. The EPOCH is there if ``epochs`` are.
    """
    batch, heads, length = log_decay.shape
    steps = jnp.maximum(log_decay.astype(jnp.float32) * LOG2E, LEAST).reshape(batch, heads, -1, chunk)
    coarse = jnp.round(steps * GRAIN) / GRAIN
    coarse, fine = jnp.cumsum(coarse, -1), jnp.cumsum(steps - coarse, -1)
    start = jnp.exp2(coarse + fine)
    end = jnp.exp2((coarse[..., -1:] - coarse) + (fine[..., -1:] - fine))
    rows = [coarse, fine, start, end]
    if epochs is not None:
        epochs = epochs.reshape(batch, 1, -1, chunk)
        last = epochs[..., -1:]
        before = jnp.pad(last[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
        rows = [coarse, fine, jnp.where(epochs == before, start, 0.0), jnp.where(epochs == last, end, 0.0)]
        rows.append(jnp.broadcast_to(epochs.astype(jnp.float32), coarse.shape))
    return jnp.stack([x.reshape(batch, heads, length) for x in rows], 2)


def decay_gradient(dsums: jax.Array, chunk: int) -> jax.Array:
    """d loss / d g [B, H, L] from d loss / d c: a token's g is in the sums of those behind it in its chunk."""
    pieces = dsums.reshape(*dsums.shape[:2], -1, chunk)
    return jnp.flip(jnp.cumsum(jnp.flip(pieces, -1), -1), -1).reshape(dsums.shape)


def pair_decays(columns: list[jax.Array], rows: list[jax.Array]) -> jax.Array:
    """exp(c_i - c_j), [C, C], or 0 where token i does not see token j, from the numbers of the tokens."""
    size = columns[COARSE].shape[0]
    i, j = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in range(2))
    seen = i >= j
    if len(rows) > EPOCH:
        seen &= columns[EPOCH] == rows[EPOCH]
    power = (columns[COARSE] - rows[COARSE]) + (columns[FINE] - rows[FINE])
    return jnp.exp2(jnp.where(seen, power, NEVER))


def forward(
    dot: Dot,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    weights: jax.Array,
    start: jax.Array,
    end: jax.Array,
    fade: jax.Array,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Outputs [C, V] and S_end, float32, from weights (q k^T) * `pair_decays`, the columns START and END, START of the
    last token, and S_start float32 [K, V]."""
    out = dot(weights.astype(v.dtype), v, 1, 0) + dot(q, state.astype(q.dtype), 1, 0) * start
    return out, state * fade + dot(k, (v * end).astype(v.dtype), 0, 0)


# The backward pass, in parts, so that a back end may end one before it begins another. ``scores`` is q k^T, ``decays``
# `pair_decays`, ``state`` S_start in q's dtype, ``dstate`` d loss / d S_end; results are float32.


def values_gradient(
    dot: Dot, dout: jax.Array, scores: jax.Array, decays: jax.Array, end: jax.Array, far: jax.Array
) -> jax.Array:
    """dv [C, V]; ``far`` is k dstate."""
    return dot((scores * decays).astype(dout.dtype), dout, 0, 0) + far * end


def scores_gradient(
    dot: Dot, v: jax.Array, dout: jax.Array, scores: jax.Array, decays: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """d loss / d scores, [C, C], and what d loss / d c has of it, a column and a row, to be summed.

    A token and itself meet at decay 1 whatever c is. Left in, that pair would cancel in exact arithmetic only, and its
    rounding outweighs the pairs that strong decays have faded.
    """
    dscores = dot(dout, v, 1, 1) * decays
    i, j = (jax.lax.broadcasted_iota(jnp.int32, decays.shape, axis) for axis in range(2))
    moved = jnp.where(i == j, 0.0, dscores * scores)
    return dscores, moved.sum(1, keepdims=True), -moved.sum(0, keepdims=True)


def queries_gradient(
    dot: Dot, q: jax.Array, dout: jax.Array, start: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The part of dq [C, K] that came through S_start, beside ``dscores k``, and of d loss / d c, a column."""
    dq = dot(dout, state, 1, 1) * start
    return dq, (q * dq).sum(1, keepdims=True)


def keys_gradient(
    dot: Dot, k: jax.Array, v: jax.Array, end: jax.Array, dstate: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The part of dk [C, K] that came through S_end, beside ``dscores^T q``, and of d loss / d c, a column; the same
    is taken from d loss / d c at the last token (`last_gradient`)."""
    dk = dot(v, dstate.astype(v.dtype), 1, 1) * end
    return dk, -(k * dk).sum(1, keepdims=True)


def last_gradient(of_keys: jax.Array, fade: jax.Array, state: jax.Array, dstate: jax.Array) -> jax.Array:
    """What d loss / d c has more at the last token, [1, 1], given the column of `keys_gradient`."""
    both = dstate.astype(jnp.float32) * state
    return fade * both.sum(1, keepdims=True).sum(0, keepdims=True) - of_keys.sum(0, keepdims=True)


def state_gradient(
    dot: Dot, q: jax.Array, dout: jax.Array, start: jax.Array, fade: jax.Array, dstate: jax.Array
) -> jax.Array:
    """d loss / d S_start, [K, V]."""
    return dstate * fade + dot((q * start).astype(q.dtype), dout, 0, 0)
