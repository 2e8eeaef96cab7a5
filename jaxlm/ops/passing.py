"""What a run of tokens of a linear recurrence does to a state that comes in, for those whose decay is a diagonal.

    o_t = (what the run itself makes) + r_t^T S_in      S_out = (what the run itself makes) + diag(m) S_in
    r_t = exp(c_t) q_t,  m = exp(c_L),  c the running sum of the log decays

With documents, tokens after the first of them to begin read nothing of S_in, and nothing of it is left.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.ops.segments import Rows


def passing(
    q: jax.Array, heads: int, log_decay: jax.Array | None, rows: Rows | None = None
) -> tuple[jax.Array, jax.Array]:
    """r, float32 [B, L, H, K], and m, float32 [B, H, K].

    Args:
      q: [B, L, G, K]; head h uses group h // (H / G).
      heads: H.
      log_decay: float32 [B, L, H], [B, L, H, K] or [H], <= 0; None for no decay.
      rows: padding and documents; None for neither.
    """
    batch, length, groups, width = q.shape
    fade = jnp.zeros((heads, 1)) if log_decay is None else log_decay.astype(jnp.float32)
    if log_decay is not None and fade.ndim != 4:
        fade = fade[..., None]
    fade = jnp.broadcast_to(fade, (batch, length, heads, width))
    if rows is not None:
        fade = jnp.where(rows.real[..., None, None], fade, 0)
    sums = jnp.cumsum(fade, 1)
    reading = jnp.repeat(q.astype(jnp.float32), heads // groups, 2) * jnp.exp(sums)
    left = jnp.exp(sums[:, -1])
    if rows is None:
        return reading, left
    reading = jnp.where((rows.epoch == 0)[..., None, None], reading, 0)
    return reading, jnp.where((rows.epoch[:, -1] == 0)[:, None, None], left, 0)
