"""Attention as the formula reads: dense scores, dense mask, float32. The specification of every other back end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NEVER = -1e30


def visible(
    mask: Callable[[jax.Array, jax.Array], jax.Array],
    pos_q: jax.Array,
    pos_k: jax.Array,
    seg_q: jax.Array | None,
    seg_k: jax.Array | None,
) -> jax.Array:
    """Boolean [B or 1, H or 1, Lq, Lk]: the mask, within one segment, never a key of segment 0 (padding)."""
    seen = mask(pos_q[:, None, :, None], pos_k[:, None, None, :])
    if seg_q is None or seg_k is None:
        return seen
    seg_q, seg_k = seg_q[:, None, :, None], seg_k[:, None, None, :]
    return seen & (seg_q == seg_k) & (seg_k != 0)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Callable[[jax.Array, jax.Array], jax.Array],
    pos_q: jax.Array,
    pos_k: jax.Array,
    seg_q: jax.Array | None = None,
    seg_k: jax.Array | None = None,
    bias: Any = None,
    scale: float,
    soft_cap: float = 0.0,
    skip_future: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + bias) v over the visible keys.

    Args:
      q: [B, Lq, H, K].
      k, v: [B, Lk, G, K]; query head h reads key/value head h // (H / G).
      mask: visibility of (query position, key position), pointwise on [B or 1, 1, Lq, 1] and [B or 1, 1, 1, Lk].
      pos_q, pos_k: int32 [B or 1, L].
      seg_q, seg_k: int32 [B, L] or None; attention stays within a segment and never reaches segment 0.
      bias: None, or an object with ``tile(pos_q, pos_k) -> [B or 1, H, Lq, Lk]``, added after scale and soft cap.
      scale: factor of the logits.
      soft_cap: if positive, logits become ``cap * tanh(logits / cap)``.
      skip_future: a promise that no key lies at or beyond a later row's slot; unused here.

    Returns:
      The output [B, Lq, H, K] in v's dtype and the log-sum-exp [B, H, Lq] float32. A query that sees no key gives
      output 0 and log-sum-exp -inf, with finite gradients.
    """
    del skip_future
    heads, groups = q.shape[2], k.shape[2]
    k, v = (jnp.repeat(x, heads // groups, axis=2) for x in (k, v))
    logits = scale * jnp.einsum("blhk,bthk->bhlt", q.astype(jnp.float32), k.astype(jnp.float32))
    if soft_cap:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if bias is not None:
        logits = logits + bias.tile(pos_q, pos_k)
    seen = visible(mask, pos_q, pos_k, seg_q, seg_k)
    logits = jnp.where(seen, logits, NEVER)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(logits - top), 0.0)
    total = weights.sum(-1, keepdims=True)
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    out = jnp.einsum("bhlt,bthk->blhk", weights / safe, v.astype(jnp.float32))
    lse = jnp.where(some, jnp.log(safe) + top, -jnp.inf)[..., 0]
    return out.astype(v.dtype), lse
