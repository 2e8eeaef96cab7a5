"""The delta rule: a state that is asked for a key's value, and corrected by what it got wrong.

    S_t = S' + beta_t k_t (v_t - S'^T k_t)^T    S' = diag(exp g_t) S_{t-1}        o_t = S_t^T q_t

DeltaNet without decay, Gated DeltaNet with one g per head, KDA with one per key channel. Within a chunk, with A the
products of keys that fade (`jaxlm.ops.chunks`) and a column for each beta_j k_j, the corrections D = v - S'^T k solve

    (I + tril(A, -1)) D = V - (K faded since the start) S_start

and so O and the state after the chunk are those of the values D (the UT transform; Yang et al. 2024, Parallelizing
Linear Transformers with the Delta Rule; 2025, Gated Delta Networks).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose
from jaxlm.ops.chunks import Chunk, first_state, over_chunks, over_tokens, times
from jaxlm.ops.segments import Rows
from jaxlm.ops.triangular import unit_lower_inverse

IMPLEMENTATIONS = ("xla", "reference")


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None = None,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Outputs of L tokens and the state after them.

    Args:
      q, k: [B, L, G, K], not scaled; head h uses group h // (H / G). Keys should have unit length, or less: beyond
        |k|^2 beta = 2 the state grows without bound.
      v: [B, L, H, V].
      beta: [B, L, H], how much of an error is corrected.
      log_decay: [B, L, H] or [B, L, H, K], <= 0; None for no decay.
      rows: padding and documents; None for neither.
      state: float32 [B, H, K, V] before these tokens; None for zeros.
      chunk: C, tokens that meet each other as matrices; beyond 16, decays by channel take the next multiple of 16.
      implementation: ``"xla"`` (by chunks), ``"reference"`` (token by token); None for the fastest that serves.

    Returns:
      [B, L, H, V] in v's dtype, arbitrary on padding, and the float32 state [B, H, K, V]; float64 for such q.
    """
    choose("delta_rule: implementation", implementation or "xla", IMPLEMENTATIONS)
    if implementation == "reference" or q.shape[1] == 1:
        return reference(q, k, v, beta, log_decay, rows=rows, state=state)

    def body(chunk: Chunk, state: jax.Array, x: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, k, v, written = x["q"], x["k"], x["v"], x["beta"] * x["k"]
        solve = unit_lower_inverse(jnp.tril(chunk.pairs(k, written), -1))
        d = times(solve, v - times(chunk.from_start(k), state))
        out = times(chunk.from_start(q), state) + times(chunk.pairs(q, written), d)
        return out, chunk.carry(state) + times(chunk.to_end(written).mT, d)

    arrays = {"q": q, "k": k, "v": v, "beta": beta[..., None]}
    out, state = over_chunks(body, arrays, _by_channel(log_decay), first_state(state, q, v), rows, chunk)
    return out.astype(v.dtype), state


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None = None,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`delta_rule` as the formula reads, token after token; float64 for such inputs."""

    def body(state: jax.Array, x: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        state = x["fade"][..., None] * state
        error = x["v"] - times(x["k"][..., None, :], state)[..., 0, :]
        state = state + (x["beta"] * x["k"])[..., None] * error[..., None, :]
        return times(x["q"][..., None, :], state)[..., 0, :], state

    arrays = {"q": q, "k": k, "v": v, "beta": beta[..., None]}
    out, state = over_tokens(body, arrays, _by_channel(log_decay), first_state(state, q, v), rows)
    return out.astype(v.dtype), state


def _by_channel(log_decay: jax.Array | None) -> jax.Array | None:
    """[B, L, H] as [B, L, H, 1]."""
    return log_decay[..., None] if log_decay is not None and log_decay.ndim == 3 else log_decay
