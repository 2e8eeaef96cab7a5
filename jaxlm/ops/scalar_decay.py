"""Linear recurrences whose state fades by one number per head and token, and matrices of outer products are added to.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = q_t^T S_t

Linear attention (g = 0), RetNet (g fixed), simple GLA and Mamba-2 (g_t from the token) are this with other q, k, v, g.
Within a chunk of C tokens, with c the running sum of g,

    o_i = exp(c_i) q_i^T S_start + sum_{j <= i} exp(c_i - c_j) (q_i^T k_j) v_j

so all exponents are <= 0, and a chunk costs three matmuls and a C x C mask (Dao & Gu 2024, SSD; Yang et al. 2024).
All chunks are done side by side, but for the states that go from one to the next; q^T k is had once per group.
More on chunks in `jaxlm.ops.decay_chunks`.
"""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.ops.decay_chunks import Tokens, chunks, nothing
from jaxlm.ops.segments import Rows
from pallas_kernels.block_sparse_attention.call import target
from pallas_kernels.ssd import call

KERNELS = {"triton": "gpu", "tpu": "tpu"}  # and their platforms, in the order in which they are tried
IMPLEMENTATIONS = (*KERNELS, "xla", "reference")
FEW_TOKENS = 16  # that would leave most of a kernel's chunk empty; it takes them if it is named
PAIRS = 2**24  # of a head's tokens that may meet at once: what is longer goes through a scan, piece by piece


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
    decay = jnp.zeros((heads,), kind) if log_decay is None else jnp.maximum(log_decay.astype(kind), nothing(kind))
    epoch = prior = None
    if rows is not None:
        k = jnp.where(rows.real[..., None, None], k, 0)
        decay, epoch = jnp.where(rows.real[..., None], decay, 0), rows.epoch
        prior = jnp.pad(epoch[:, :-1], ((0, 0), (1, 0)))
    by_group = lambda x, axis: x.reshape(*x.shape[:axis], groups, heads // groups, *x.shape[axis + 1 :])
    decay = by_group(decay, decay.ndim - 1)
    same = decay if decay.ndim == 2 else None
    tokens = Tokens(q, k, by_group(v, 2), decay if same is None else None, epoch, prior)
    if state is not None:
        state = by_group(state.astype(kind), 1)
    if length == 1:
        out, after = _one_token(tokens, decay, state)
        return out.reshape(v.shape).astype(v.dtype), after.reshape(batch, heads, width, depth)
    if state is not None:
        state = jnp.moveaxis(state, 2, 3)

    def run(state: jax.Array | None, now: Tokens, size: int) -> tuple[jax.Array, jax.Array]:
        """The state after some chunks of that size, and their outputs [B, any, H, V]."""
        count = now.q.shape[1] // size
        apart = lambda x: jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)
        out, after = chunks(jax.tree.map(apart, now), same, state)
        return after, jnp.moveaxis(out, 0, 1).reshape(batch, count * size, heads, depth).astype(v.dtype)

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
    whole = length - (length - at) % chunk
    for begin, end, size in ((at, whole, chunk), (whole, length, length - whole)):
        if end > begin:
            state, out = run(state, jax.tree.map(lambda x, cut=slice(begin, end): x[:, cut], tokens), size)
            outs.append(out)
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
