"""Linear recurrences whose state fades by one number per head and token, and matrices of outer products are added to.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = q_t^T S_t

Linear attention (g = 0), RetNet (g fixed), simple GLA and Mamba-2 (g_t from the token) are this with other q, k, v, g.
Within a chunk of C tokens, with c the running sum of g,

    o_i = exp(c_i) q_i^T S_start + sum_{j <= i} exp(c_i - c_j) (q_i^T k_j) v_j

so all exponents are <= 0, and a chunk costs three matmuls and a C x C mask (Dao & Gu 2024, SSD; Yang et al. 2024).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose
from jaxlm.ops.segments import Rows

IMPLEMENTATIONS = ("xla", "reference")


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
      chunk: C, tokens that meet each other as matrices.
      implementation: ``"xla"`` (by chunks), ``"reference"`` (token by token); None for the fastest that serves.

    Returns:
      [B, L, H, V] in v's dtype, arbitrary on padding, and the float32 state [B, H, K, V].
    """
    choose("scalar_decay: implementation", implementation or "xla", IMPLEMENTATIONS)
    del chunk
    return reference(q, k, v, log_decay, rows=rows, state=state)


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
