"""Linear recurrences whose transition is diagonal plus a matrix of rank one, the generalised delta rule of RWKV-7.

    S_t = diag(exp g_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T        o_t = q_t^T S_t

a reads the state before it fades. Within a chunk, what it reads, u_t = S_{t-1}^T a_t, solves

    (I - A_ab) U = (a faded since the start) S_start + A_ak V

with A the products that fade (`jaxlm.ops.chunks`), of a with earlier b and k; the state then has the values U at b and
V at k (Peng et al. 2025, RWKV-7 "Goose" with Expressive Dynamic State Evolution).
"""

from __future__ import annotations

import jax

from jaxlm.core.errors import choose
from jaxlm.ops.chunks import Chunk, first_state, over_chunks, over_tokens, times
from jaxlm.ops.segments import Rows
from jaxlm.ops.triangular import unit_lower_inverse

IMPLEMENTATIONS = ("xla", "reference")


def dplr(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    log_decay: jax.Array,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Outputs of L tokens and the state after them.

    Args:
      q, k, a, b: [B, L, G or H, K], not scaled; head h uses group h // (H / G).
      v: [B, L, H, V].
      log_decay: [B, L, H, K], <= 0.
      rows: padding and documents; None for neither.
      state: float32 [B, H, K, V] before these tokens; None for zeros.
      chunk: C, tokens that meet each other as matrices; beyond 16, the next multiple of 16.
      implementation: ``"xla"`` (by chunks), ``"reference"`` (token by token); None for the fastest that serves.

    Returns:
      [B, L, H, V] in v's dtype, arbitrary on padding, and the float32 state [B, H, K, V]; float64 for such q.
    """
    choose("dplr: implementation", implementation or "xla", IMPLEMENTATIONS)
    if implementation == "reference" or q.shape[1] == 1:
        return reference(q, k, v, a, b, log_decay, rows=rows, state=state)

    def body(chunk: Chunk, state: jax.Array, x: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, k, v, a, b = (x[name] for name in "qkvab")
        solve = unit_lower_inverse(-chunk.earlier(a, b))
        u = times(solve, times(chunk.before(a), state) + times(chunk.earlier(a, k), v))
        out = times(chunk.from_start(q), state) + times(chunk.pairs(q, b), u) + times(chunk.pairs(q, k), v)
        return out, chunk.carry(state) + times(chunk.to_end(b).mT, u) + times(chunk.to_end(k).mT, v)

    arrays = {"q": q, "k": k, "v": v, "a": a, "b": b}
    out, state = over_chunks(body, arrays, log_decay, first_state(state, q, v), rows, chunk)
    return out.astype(v.dtype), state


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    log_decay: jax.Array,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`dplr` as the formula reads, token after token; float64 for such inputs."""

    def body(state: jax.Array, x: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        read = times(x["a"][..., None, :], state)
        state = x["fade"][..., None] * state + x["b"][..., None] * read + x["k"][..., None] * x["v"][..., None, :]
        return times(x["q"][..., None, :], state)[..., 0, :], state

    arrays = {"q": q, "k": k, "v": v, "a": a, "b": b}
    out, state = over_tokens(body, arrays, log_decay, first_state(state, q, v), rows)
    return out.astype(v.dtype), state
