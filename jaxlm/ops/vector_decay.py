"""Linear recurrences whose state fades by one number per key channel, and matrices of outer products are added to.

    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T        o_t = q_t^T S_t

GLA, HGRN-2. With a bonus u, as in RWKV-6, a token reads what was before it undecayed, and itself through u:

    o_t = q_t^T (S_{t-1} + diag(u) k_t v_t^T)

`jaxlm.ops.chunks` says how a chunk of tokens is had at once (Yang et al. 2024, Gated Linear Attention Transformers).
"""

from __future__ import annotations

import jax

from jaxlm.core.errors import choose
from jaxlm.ops.chunks import Chunk, first_state, over_chunks, over_tokens, times
from jaxlm.ops.segments import Rows

IMPLEMENTATIONS = ("xla", "reference")


def vector_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    *,
    bonus: jax.Array | None = None,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Outputs of L tokens and the state after them.

    Args:
      q, k: [B, L, G, K], not scaled; head h uses group h // (H / G).
      v: [B, L, H, V].
      log_decay: [B, L, H, K], <= 0.
      bonus: u [H, K]; None to read the state after each token.
      rows: padding and documents; None for neither.
      state: float32 [B, H, K, V] before these tokens; None for zeros.
      chunk: C, tokens that meet each other as matrices; beyond 16, the next multiple of 16.
      implementation: ``"xla"`` (by chunks), ``"reference"`` (token by token); None for the fastest that serves.

    Returns:
      [B, L, H, V] in v's dtype, arbitrary on padding, and the float32 state [B, H, K, V]; float64 for such q.
    """
    choose("vector_decay: implementation", implementation or "xla", IMPLEMENTATIONS)
    if implementation == "reference" or q.shape[1] == 1:
        return reference(q, k, v, log_decay, bonus=bonus, rows=rows, state=state)

    def body(chunk: Chunk, state: jax.Array, x: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, k, v = x["q"], x["k"], x["v"]
        if bonus is None:
            out = times(chunk.from_start(q), state) + times(chunk.pairs(q, k), v)
        else:
            own = (q * bonus.astype(q.dtype)[:, None] * k).sum(-1, keepdims=True) * v
            out = times(chunk.before(q), state) + times(chunk.earlier(q, k), v) + own
        return out, chunk.carry(state) + times(chunk.to_end(k).mT, v)

    out, state = over_chunks(body, {"q": q, "k": k, "v": v}, log_decay, first_state(state, q, v), rows, chunk)
    return out.astype(v.dtype), state


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    *,
    bonus: jax.Array | None = None,
    rows: Rows | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`vector_decay` as the formula reads, token after token; float64 for such inputs."""

    def body(state: jax.Array, x: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        new = x["k"][..., None] * x["v"][..., None, :]
        after = x["fade"][..., None] * state + new
        read = after if bonus is None else state + bonus.astype(new.dtype)[..., None] * new
        return times(x["q"][..., None, :], read)[..., 0, :], after

    out, state = over_tokens(body, {"q": q, "k": k, "v": v}, log_decay, first_state(state, q, v), rows)
    return out.astype(v.dtype), state
