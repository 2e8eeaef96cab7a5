"""The chunks of `jaxlm.ops.scalar_decay`, forward and backward: all side by side, but for the states between them.

The gradient is written by hand. It keeps the chunks' first states, makes the masks anew, and needs no gradient of them:
c_i, the running sum of the decays, multiplies all of o_i and divides all that v_i adds, so that for each head
dc_i = do_i . o_i - v_i . dv_i, and the sum at a chunk's end has dS . S on top. As with `jaxlm.ops.dense`, there is no
forward mode.

c is kept as two sums. A float32 near -10^4 is 10^-3 wrong, and so would be the decay between two neighbours: the sum of
the g rounded to a coarse grid is exact, and that of the remainders is small.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Tokens(NamedTuple):
    """Tokens of n chunks [n, B, C, ...], or of all [B, L, ...].

    Attributes:
      q, k: [..., C, G, K]. v: [..., C, G, R, V].
      decay: [..., C, G, R]; None where that of all tokens is the same.
      epoch, prior: int32 [..., C], a token's document and that of the token before; None for one document.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    decay: jax.Array | None
    epoch: jax.Array | None
    prior: jax.Array | None


class Fades(NamedTuple):
    """What is left of what at the end of a chunk, and on the way; n and b are 1 where that is the same for all.

    Attributes:
      pair: [n, b, G, R, C, C], of token j when token i reads; 0 where it may not.
      read: [n, b, C, G, R], of the first state when token i reads.
      write: [n, b, C, G, R], of token j in the last state.
      keep: [n, b, G, R], of the first state in the last.
    """

    pair: jax.Array
    read: jax.Array
    write: jax.Array
    keep: jax.Array


@jax.custom_vjp
def chunks(now: Tokens, same: jax.Array | None, state: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Outputs [n, B, C, G, R, V] of n chunks, and the state [B, G, K, R, V] after them, in the decays' dtype.

    ``same`` is the decay [G, R] of all tokens, if they have none of their own; a state of None is one of zeros.
    """
    return _forward(now, same, state)[0]


def _forward(now: Tokens, same: jax.Array | None, state: jax.Array | None) -> tuple[tuple[jax.Array, jax.Array], Any]:
    fades = _of_tokens(now) if same is None else _same_for_all(same, now.q.shape[2])
    q, k, v = _by_group(now, fades.pair.dtype)
    pairs = jnp.matmul(q, _turned(k))[:, :, :, None] * fades.pair
    out = _by_token(jnp.matmul(pairs, _by_head(v)))
    # All heads of a group read and write as one wide matrix [K, R V].
    added = jnp.matmul(_turned(k), _wide(fades.write[..., None] * v))
    added = added.reshape(*added.shape[:-1], *v.shape[4:])
    if state is None and len(added) == 1:
        first, after = None, added[0]
    else:
        state = jnp.zeros_like(added[0]) if state is None else state
        after, first = _passed(added, fades.keep, state)
        read = jnp.swapaxes(jnp.matmul(q, _flat(first)), 2, 3)
        out = out + fades.read[..., None] * read.reshape(v.shape)
    return (out, after), (now, same, state is None, first, out, after)


def _backward(saved: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[Tokens, jax.Array | None, jax.Array | None]:
    now, same, fresh, first, out, after = saved
    d_out, d_after = gradients
    fades = _of_tokens(now) if same is None else _same_for_all(same, now.q.shape[2])
    q, k, v = _by_group(now, fades.pair.dtype)
    dh = _by_head(d_out)
    pairs = jnp.matmul(q, _turned(k))[:, :, :, None] * fades.pair
    d_pairs = jnp.matmul(dh, _turned(_by_head(v))) * fades.pair
    # XLA's reduction over a middle axis costs several times this on a CPU.
    d_scores = functools.reduce(jnp.add, (d_pairs[:, :, :, head] for head in range(d_pairs.shape[3])))
    dq, dk = jnp.matmul(d_scores, k), jnp.matmul(_turned(d_scores), q)
    d_state, d_last = None, d_after[None]  # of the state before, and of those that chunks end with
    if first is not None:
        d_read = _wide(fades.read[..., None] * d_out)
        d_first = jnp.matmul(_turned(q), d_read).reshape(first.shape)
        d_state, d_last = _passed(d_first, fades.keep, d_after, reverse=True)
        dq = dq + jnp.matmul(d_read, _turned(_flat(first)))
    dv = jnp.swapaxes(jnp.matmul(k, _flat(d_last)), 2, 3).reshape(v.shape)
    dv = _by_token(jnp.matmul(_turned(pairs), dh)) + fades.write[..., None] * dv
    dk = dk + jnp.matmul(_wide(fades.write[..., None] * v), _turned(_flat(d_last)))
    last = after[None] if first is None else jnp.concatenate((first[1:], after[None]))
    d_sums = jnp.sum(d_out * out - v * dv, -1)
    d_decay = jax.lax.cumsum(d_sums, 2, reverse=True) + jnp.sum(d_last * last, (3, 5))[:, :, None]
    dq, dk = (jnp.swapaxes(x, 2, 3).astype(now.q.dtype) for x in (dq, dk))
    d_tokens = Tokens(dq, dk, dv.astype(now.v.dtype), d_decay if same is None else None, None, None)
    return d_tokens, None if same is None else d_decay.sum((0, 1, 2)), None if fresh else d_state


chunks.defvjp(_forward, _backward)


def _turned(x: jax.Array) -> jax.Array:
    """A transposed matrix."""
    return jnp.swapaxes(x, -1, -2)


def _by_group(now: Tokens, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q and k [n, B, G, C, K], v as it is, in another dtype."""
    q, k, v = (x.astype(dtype) for x in (now.q, now.k, now.v))
    return jnp.swapaxes(q, 2, 3), jnp.swapaxes(k, 2, 3), v


def _by_head(x: jax.Array) -> jax.Array:
    """[n, B, C, G, R, V] -> [n, B, G, R, C, V]."""
    return jnp.moveaxis(x, 2, 4)


def _by_token(x: jax.Array) -> jax.Array:
    """The inverse of `_by_head`."""
    return jnp.moveaxis(x, 4, 2)


def _flat(x: jax.Array) -> jax.Array:
    """[..., R, V] -> [..., R V]."""
    return x.reshape(*x.shape[:-2], -1)


def _wide(x: jax.Array) -> jax.Array:
    """[n, B, C, G, R, V] -> [n, B, G, C, R V]."""
    return jnp.swapaxes(_flat(x), 2, 3)


def _passed(added: jax.Array, keep: jax.Array, state: jax.Array, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
    """The state [B, G, K, R, V] after ``added`` [n, B, G, K, R, V] one by one, and those before each."""

    def step(state: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        added, keep = now
        return keep[:, :, None, :, None] * state + added, state

    return jax.lax.scan(step, state, (added, jnp.broadcast_to(keep, (len(added), *keep.shape[1:]))), reverse=reverse)


def _same_for_all(decay: jax.Array, size: int) -> Fades:
    """Of decays [G, R] that all tokens have, none of them padding."""
    steps = np.arange(size)
    ahead = np.where(np.tri(size, dtype=bool), 0.0, -np.inf).astype(decay.dtype)
    ago = np.maximum(steps[:, None] - steps, 0).astype(decay.dtype)
    at = lambda count: jnp.exp(np.asarray(count, decay.dtype)[:, None, None] * decay)[None, None]
    pair = jnp.exp(decay[..., None, None] * ago + ahead)[None, None]
    return Fades(pair, at(steps + 1), at(size - 1 - steps), at([size])[:, :, 0])


def _of_tokens(now: Tokens) -> Fades:
    """Of each token's own decay."""
    assert now.decay is not None
    coarse, fine = _running_sums(jnp.moveaxis(now.decay, 2, 4))
    ahead = np.where(np.tri(coarse.shape[-1], dtype=bool), 0.0, -np.inf).astype(coarse.dtype)
    pair = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :]) + ahead
    write = jnp.moveaxis((coarse[..., -1:] - coarse) + (fine[..., -1:] - fine), 4, 2)
    read = jnp.moveaxis(coarse + fine, 4, 2)
    keep = read[:, :, -1]
    if now.epoch is None or now.prior is None:
        return Fades(*(jnp.exp(x) for x in (pair, read, write, keep)))
    epoch, by_pair = now.epoch[..., None, None], now.epoch[:, :, None, None]
    prior, last = now.prior[:, :, :1, None, None], epoch[:, :, -1:]
    return Fades(
        jnp.exp(jnp.where(by_pair[..., :, None] == by_pair[..., None, :], pair, -jnp.inf)),
        jnp.where(epoch == prior, jnp.exp(read), 0),
        jnp.where(epoch == last, jnp.exp(write), 0),
        jnp.where(last == prior, jnp.exp(keep)[:, :, None], 0)[:, :, 0],
    )


def nothing(dtype: Any) -> int:
    """A logarithm whose exp is 0, so that it may stand for less."""
    kind = jnp.finfo(dtype)
    return math.floor(kind.minexp * math.log(2)) - kind.nmant


def _running_sums(decay: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The running sums of decays [..., C] as two numbers, whose differences are right to float error each."""
    grid = 2.0 ** (math.ceil(math.log2(-nothing(decay.dtype) * decay.shape[-1])) - jnp.finfo(decay.dtype).nmant - 1)
    coarse = jnp.round(decay / grid) * grid
    return jnp.cumsum(coarse, -1), jnp.cumsum(decay - coarse, -1)
