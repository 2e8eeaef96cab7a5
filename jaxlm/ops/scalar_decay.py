"""Linear recurrences whose state fades by one number per head and token, and matrices of outer products are added to.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = q_t^T S_t

Linear attention (g = 0), RetNet (g fixed), simple GLA and Mamba-2 (g_t from the token) are this with other q, k, v, g.
Within a chunk of C tokens, with c the running sum of g,

    o_i = exp(c_i) q_i^T S_start + sum_{j <= i} exp(c_i - c_j) (q_i^T k_j) v_j

so all exponents are <= 0, and a chunk costs three matmuls and a C x C mask (Dao & Gu 2024, SSD; Yang et al. 2024).
Chunks follow each other in a scan that keeps their first states alone for the gradient; q^T k is had once per group.

c is kept as two sums. A float32 near -10^4 is 10^-3 wrong, and so would be the decay between two neighbours: the sum of
the g rounded to a coarse grid is exact, and that of the remainders is small.
"""

from __future__ import annotations

import importlib
import math
from typing import NamedTuple

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


class Tokens(NamedTuple):
    """Tokens of a chunk [B, C, ...], of all [B, L, ...], or of many chunks [n, B, C, ...].

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
    """What is left of what at the end of a chunk, and on the way; b is B or 1.

    Attributes:
      pair: [b, G, R, C, C], of token j when token i reads; 0 where it may not.
      read: [b, G, R, C], of the first state when token i reads.
      write: [b, G, R, C], of token j in the last state.
      keep: [b, G, R], of the first state in the last.
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
    by_group = lambda x: x.reshape(*x.shape[:-1], groups, heads // groups)
    decay, epoch = jnp.zeros((heads,), kind) if log_decay is None else log_decay.astype(kind), None
    if rows is not None:
        k = jnp.where(rows.real[..., None, None], k, 0)
        decay, epoch = jnp.where(rows.real[..., None], decay, 0), rows.epoch
    decay = by_group(decay)
    prior = None if epoch is None else jnp.pad(epoch[:, :-1], ((0, 0), (1, 0)))
    values = v.reshape(batch, length, groups, -1, depth)
    tokens = Tokens(q, k, values, decay if decay.ndim > 2 else None, epoch, prior)
    if length == 1:
        out, state = _one_token(tokens, decay, None if state is None else state.astype(kind))
        return out.reshape(v.shape).astype(v.dtype), state.reshape(batch, heads, width, depth)
    if state is not None:
        state = jnp.moveaxis(state.astype(kind).reshape(batch, groups, -1, width, depth), 2, 3)

    chunk = min(chunk, length)
    sizes = {chunk, length % chunk} - {0}
    same = {size: _same_for_all(decay, size) for size in sizes} if decay.ndim == 2 else {}

    def run(state: jax.Array | None, now: Tokens) -> tuple[jax.Array, jax.Array]:
        size = now.q.shape[1]
        state, out = _chunk(now, same[size] if now.decay is None else _of_tokens(now), state, kind)
        return state, out.reshape(batch, size, heads, depth).astype(v.dtype)

    count = length // chunk
    cut = count * chunk
    first = jax.tree.map(lambda x: x[:, :cut], tokens)
    if count == 1:
        state, out = run(state, first)
    else:
        first = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0), first)
        start = jnp.zeros((batch, groups, width, heads // groups, depth), kind) if state is None else state
        state, out = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), start, first)
        out = jnp.moveaxis(out, 0, 1).reshape(batch, cut, heads, depth)
    if cut < length:
        state, more = run(state, jax.tree.map(lambda x: x[:, cut:], tokens))
        out = jnp.concatenate((out, more), 1)
    return out, jnp.moveaxis(state, 3, 2).reshape(batch, heads, width, depth)


def _one_token(now: Tokens, decay: jax.Array, state: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Output [B, G, R, V] of a single token and the state [B, G, R, K, V] after it, which keeps its layout."""
    q, k, v = (x[:, 0].astype(decay.dtype) for x in (now.q, now.k, now.v))
    after = k[:, :, None, :, None] * v[:, :, :, None]
    if state is not None:
        fade = jnp.exp(decay[None] if now.decay is None else decay[:, 0])
        if now.epoch is not None:
            fade = jnp.where(now.epoch[..., None] == 0, fade, 0)
        after = after + fade[..., None, None] * state.reshape(after.shape)
    return jnp.matmul(q[:, :, None, None], after)[..., 0, :], after


def _chunk(now: Tokens, fades: Fades, state: jax.Array | None, kind: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The state [B, G, K, R, V] after a chunk's tokens, None for one of zeros before, and outputs [B, C, G, R, V]."""
    q, k = (jnp.swapaxes(x.astype(kind), 1, 2) for x in (now.q, now.k))  # [B, G, C, K]
    v = now.v.astype(kind)
    scores = jnp.matmul(q, jnp.swapaxes(k, 2, 3))
    out = jnp.matmul(scores[:, :, None] * fades.pair, jnp.moveaxis(v, 1, 3))  # [B, G, R, C, V]
    out = jnp.moveaxis(out, 3, 1)
    # All heads of a group read and write as one wide matrix [K, R V].
    flat = lambda x: x.reshape(*x.shape[:-2], -1)
    by_token = lambda x: jnp.moveaxis(x, 3, 1)[..., None]  # [b, G, R, C] -> [b, C, G, R, 1]
    written = jnp.swapaxes(flat(by_token(fades.write) * v), 1, 2)  # [B, G, C, R V]
    after = jnp.matmul(jnp.swapaxes(k, 2, 3), written)
    after = after.reshape(*after.shape[:-1], *v.shape[3:])
    if state is not None:
        read = jnp.swapaxes(jnp.matmul(q, flat(state)), 1, 2)
        out = out + by_token(fades.read) * read.reshape(v.shape)
        after = after + fades.keep[:, :, None, :, None] * state
    return after, out


def _same_for_all(decay: jax.Array, size: int) -> Fades:
    """Of decays [G, R] that all tokens have, none of them padding."""
    steps = np.arange(size)
    ahead = np.where(np.tri(size, dtype=bool), 0.0, -np.inf).astype(decay.dtype)
    ago = np.maximum(steps[:, None] - steps, 0).astype(decay.dtype)
    at = lambda count: jnp.exp(decay[..., None] * np.asarray(count, decay.dtype))[None]
    pair = jnp.exp(decay[..., None, None] * ago + ahead)[None]
    return Fades(pair, at(steps + 1), at(size - 1 - steps), at([size])[..., 0])


def _of_tokens(now: Tokens) -> Fades:
    """Of each token's own decay."""
    assert now.decay is not None
    coarse, fine = _running_sums(jnp.moveaxis(now.decay, 1, 3))
    ahead = np.where(np.tri(now.q.shape[1], dtype=bool), 0.0, -np.inf).astype(coarse.dtype)
    pair = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :]) + ahead
    write = (coarse[..., -1:] - coarse) + (fine[..., -1:] - fine)
    read = coarse + fine
    keep = read[..., -1]
    if now.epoch is None or now.prior is None:
        return Fades(*(jnp.exp(x) for x in (pair, read, write, keep)))
    epoch, prior, last = now.epoch[:, None, None], now.prior[:, None, None, :1], now.epoch[:, None, None, -1:]
    return Fades(
        jnp.exp(jnp.where(epoch[..., :, None] == epoch[..., None, :], pair, -jnp.inf)),
        jnp.where(epoch == prior, jnp.exp(read), 0),
        jnp.where(epoch == last, jnp.exp(write), 0),
        jnp.where(last == prior, jnp.exp(keep)[..., None], 0)[..., 0],
    )


def _running_sums(decay: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The running sums of decays [..., C] as two numbers, whose differences are right to float error each."""
    kind = jnp.finfo(decay.dtype)
    nothing = math.floor(kind.minexp * math.log(2)) - kind.nmant  # exp of less is 0, so that it may stand for less
    decay = jnp.maximum(decay, nothing)
    grid = 2.0 ** (math.ceil(math.log2(-nothing * decay.shape[-1])) - kind.nmant - 1)
    coarse = jax.lax.stop_gradient(jnp.round(decay / grid) * grid)
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
