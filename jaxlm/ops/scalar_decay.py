"""Linear recurrences whose state fades by one number per head and token, and matrices of outer products are added to.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = q_t^T S_t

Linear attention (g = 0), RetNet (g fixed), simple GLA and Mamba-2 (g_t from the token) are this with other q, k, v, g.
Within a chunk of C tokens, with c the running sum of g,

    o_i = exp(c_i) q_i^T S_start + sum_{j <= i} exp(c_i - c_j) (q_i^T k_j) v_j

so all exponents are <= 0, and a chunk costs three matmuls and a C x C mask (Dao & Gu 2024, SSD; Yang et al. 2024).
All chunks are done side by side, but for the states that go from one to the next; q^T k is had once per group.

The gradient is written by hand. It keeps the chunks' first states, makes the masks anew, and needs no gradient of them:
c_i multiplies all of o_i and divides all that v_i adds, so that dc_i = do_i . o_i - v_i . dv_i for each head, and the
sum of all c at a chunk's end has dS . S on top. As with `jaxlm.ops.dense`, there is no forward mode.

c is kept as two sums. A float32 near -10^4 is 10^-3 wrong, and so would be the decay between two neighbours: the sum of
the g rounded to a coarse grid is exact, and that of the remainders is small.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.ops.segments import Rows
from pallas_kernels.block_sparse_attention.call import target
from pallas_kernels.ssd import call

KERNELS = {"triton": "gpu", "tpu": "tpu"}  # and their platforms, in the order in which they are tried
IMPLEMENTATIONS = (*KERNELS, "xla", "reference")
FEW_TOKENS = 16  # that would leave most of a kernel's chunk empty; it takes them if it is named
PAIRS = 2**24  # of a head's tokens that may meet at once: what is longer goes through a scan, piece by piece


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


def scalar_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Outputs of L tokens and the state after them.

    Args:
      q, k: [B, L, G, K], not scaled; head h uses group h // (H / G).
      v: [B, L, H, V].
      log_decay: float32 [B, L, H] or [H], <= 0; None for no decay.
      rows: padding and documents; None for neither.
      state: float32 [B, H, K, V] before these tokens; None for zeros.
      chunk: C, tokens that meet each other as matrices; kernels have their own.
      implementation: ``"triton"`` or ``"tpu"`` (kernels), ``"xla"`` (by chunks), ``"reference"`` (token by token); None
        for the first that serves.

    Returns:
      [B, L, H, V] in v's dtype, arbitrary on padding, and the float32 state [B, H, K, V].

    Raises `ConfigError` for an unknown implementation, one that cannot serve, with its reason, a chunk of no tokens, or
    heads that are no multiple of groups.
    """
    require(chunk > 0, f"scalar_decay: chunk: expected a positive integer, got {chunk}")
    heads, groups = v.shape[2], q.shape[2]
    require(heads % groups == 0, f"scalar_decay: {heads} heads are not a multiple of {groups} groups")
    if choose("scalar_decay: implementation", implementation or "xla", IMPLEMENTATIONS) == "reference":
        return reference(q, k, v, log_decay, rows=rows, state=state)
    for name in KERNELS:
        if implementation == name or (implementation is None and v.shape[1] > FEW_TOKENS):
            found = _by_kernel(name, q, k, v, log_decay, rows, state)
            if not isinstance(found, str):
                return found
            if implementation:
                raise ConfigError(f"scalar_decay implementation {name!r} cannot serve this call: {found}")
    return _by_chunks(q, k, v, log_decay, rows, state, chunk)


def _by_kernel(
    name: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    rows: Rows | None,
    state: jax.Array | None,
) -> tuple[jax.Array, jax.Array] | str:
    """The call by a Pallas kernel, whose module is imported only where it could run; or why that cannot serve."""
    at = target()
    if at.platform != KERNELS[name] and not at.interpret:
        return f"it is for {KERNELS[name]} and this is {at.platform}"
    backend = importlib.import_module(f"pallas_kernels.ssd.{name}")
    if reason := backend.supports(call.request(q, k, v, at.platform, at.interpret)):
        return reason
    decay = jnp.zeros(v.shape[2:3]) if log_decay is None else log_decay
    decay, epochs = jnp.broadcast_to(decay.astype(jnp.float32), v.shape[:3]), None
    if rows is not None:
        k = jnp.where(rows.real[..., None, None], k, 0)
        decay, epochs = jnp.where(rows.real[..., None], decay, 0), rows.epoch
    return call.scan(q, k, v, decay, backend=backend, epochs=epochs, state=state, interpret=at.interpret)


def _by_chunks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    rows: Rows | None,
    state: jax.Array | None,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    kind = jnp.promote_types(q.dtype, jnp.float32)
    (batch, length, groups, width), (heads, depth) = q.shape, v.shape[2:]
    decay = jnp.zeros((heads,), kind) if log_decay is None else jnp.maximum(log_decay.astype(kind), _nothing(kind))
    epoch = prior = None
    if rows is not None:
        k = jnp.where(rows.real[..., None, None], k, 0)
        decay, epoch = jnp.where(rows.real[..., None], decay, 0), rows.epoch
        prior = jnp.pad(epoch[:, :-1], ((0, 0), (1, 0)))
    by_group = lambda x, axis: x.reshape(*x.shape[:axis], groups, heads // groups, *x.shape[axis + 1 :])
    decay = by_group(decay, decay.ndim - 1)
    tokens, same = Tokens(q, k, by_group(v, 2), decay if decay.ndim > 2 else None, epoch, prior), None
    if decay.ndim == 2:
        same = decay
    if state is not None:
        state = by_group(state.astype(kind), 1)
    if length == 1:
        out, state = _one_token(tokens, decay, state)
        return out.reshape(v.shape).astype(v.dtype), state.reshape(batch, heads, width, depth)
    if state is not None:
        state = jnp.moveaxis(state, 2, 3)

    def run(state: jax.Array | None, now: Tokens, size: int) -> tuple[jax.Array, jax.Array]:
        """The state after some chunks of that size, and their outputs [B, any, H, V]."""
        count = now.q.shape[1] // size
        apart = lambda x: jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)
        out, state = _chunks(jax.tree.map(apart, now), same, state)
        return state, jnp.moveaxis(out, 0, 1).reshape(batch, count * size, heads, depth).astype(v.dtype)

    chunk = min(chunk, length)
    piece = chunk * max(1, PAIRS // (batch * heads * chunk**2))
    outs, at = [], 0
    if length >= 2 * piece:
        at = length // piece * piece
        pieces = lambda x: jnp.moveaxis(x[:, :at].reshape(batch, -1, piece, *x.shape[2:]), 1, 0)
        start = jnp.zeros((batch, groups, width, heads // groups, depth), kind) if state is None else state
        one = jax.checkpoint(lambda state, now: run(state, now, chunk), prevent_cse=False)
        state, out = jax.lax.scan(one, start, jax.tree.map(pieces, tokens))
        outs.append(jnp.moveaxis(out, 0, 1).reshape(batch, at, heads, depth))
    for size in (chunk, (length - at) % chunk):
        end = at if size == 0 else at + (length - at) // size * size
        if end > at:
            state, out = run(state, jax.tree.map(lambda x: x[:, at:end], tokens), size)
            outs.append(out)
        at = end
    assert state is not None
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, 1)
    return out, jnp.moveaxis(state, 3, 2).reshape(batch, heads, width, depth)


def _one_token(now: Tokens, decay: jax.Array, state: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Output [B, G, R, V] of a single token and the state [B, G, R, K, V] after it, which keeps its layout."""
    q, k, v = (x[:, 0].astype(decay.dtype) for x in (now.q, now.k, now.v))
    after = k[:, :, None, :, None] * v[:, :, :, None]
    if state is not None:
        fade = jnp.exp(decay[None] if now.decay is None else decay[:, 0])
        if now.epoch is not None:
            fade = jnp.where(now.epoch[..., None] == 0, fade, 0)
        after = after + fade[..., None, None] * state
    return jnp.matmul(q[:, :, None, None], after)[..., 0, :], after


@jax.custom_vjp
def _chunks(now: Tokens, same: jax.Array | None, state: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Outputs [n, B, C, G, R, V] of n chunks, and the state [B, G, K, R, V] after them, in the decays' dtype.

    ``same`` is the decay [G, R] of all tokens, if they have none of their own; a state of None is one of zeros.
    """
    return _forward(now, same, state)[0]


def _forward(
    now: Tokens, same: jax.Array | None, state: jax.Array | None
) -> tuple[tuple[jax.Array, jax.Array], Any]:
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


_chunks.defvjp(_forward, _backward)


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


def _passed(
    added: jax.Array, keep: jax.Array, state: jax.Array, reverse: bool = False
) -> tuple[jax.Array, jax.Array]:
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


def _nothing(dtype: Any) -> int:
    """A logarithm whose exp is 0, so that it may stand for less."""
    kind = jnp.finfo(dtype)
    return math.floor(kind.minexp * math.log(2)) - kind.nmant


def _running_sums(decay: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The running sums of decays [..., C] as two numbers, whose differences are right to float error each."""
    grid = 2.0 ** (math.ceil(math.log2(-_nothing(decay.dtype) * decay.shape[-1])) - jnp.finfo(decay.dtype).nmant - 1)
    coarse = jnp.round(decay / grid) * grid
    return jnp.cumsum(coarse, -1), jnp.cumsum(decay - coarse, -1)


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`scalar_decay` as the formula reads, token after token; float64 for such inputs."""
    kind = jnp.promote_types(q.dtype, jnp.float32)
    (batch, length, groups, width), heads = q.shape, v.shape[2]
    q, k = (jnp.repeat(x.astype(kind), heads // groups, 2) for x in (q, k))
    fade = jnp.ones((), kind) if log_decay is None else jnp.exp(log_decay.astype(kind))
    fade, values = jnp.broadcast_to(fade, (batch, length, heads)), v.astype(kind)
    if rows is not None:
        fade = jnp.where(rows.real[..., None], fade, 1)
        begins = jnp.diff(rows.epoch, axis=1, prepend=0) > 0
        fade = jnp.where(begins[..., None], 0, fade)
        k = jnp.where(rows.real[..., None, None], k, 0)
    start = jnp.zeros((batch, heads, width, v.shape[-1]), kind) if state is None else state.astype(kind)

    def token(state: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, fade = now
        state = fade[..., None, None] * state + k[..., :, None] * v[..., None, :]
        return state, jnp.einsum("bhk,bhkv->bhv", q, state, precision="highest")

    state, out = jax.lax.scan(token, start, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, values, fade)))
    return jnp.moveaxis(out, 0, 1).astype(v.dtype), state
