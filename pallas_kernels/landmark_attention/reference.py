"""Landmark attention as the formula of `core` reads, for landmarks anywhere: dense, float32. The specification.

A block is the tokens since the landmark before, of any number; blocks are as many as there are landmarks. A block
without tokens keeps its landmark's weight to itself (its row then sums to less than 1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.attention.reference import NEVER


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    landmarks: jax.Array,
    slots: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None = None,
    scale: float,
    soft_cap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """The grouped softmax of scale q k^T, times v.

    Args:
      q: [B, Lq, H, K]; k, v: [B, Lk, G, K], [B, Lk, G, V]; query head h reads key/value head h // (H / G).
      landmarks: boolean [B or 1, Lk].
      slots: int32 [B or 1, Lq], the place of each query in the row of keys.
      segments: int32 ([B, Lq], [B, Lk]) or None; a query sees keys of its own segment, and none if that is 0.
      scale: factor of the logits.
      soft_cap: if positive, logits become ``cap * tanh(logits / cap)``.

    Returns:
      [B, Lq, H, V] in v's dtype, and the log-sum-exp of the outer softmax, float32 [B, H, Lq]; 0 and -inf for a query
      that sees no key.
    """
    heads, groups = q.shape[2], k.shape[2]
    k, v = (jnp.repeat(x, heads // groups, axis=2) for x in (k, v))
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = scale * jnp.einsum("blhk,bthk->bhlt", q.astype(wide), k.astype(wide))
    if soft_cap:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    weights, lse = grouped_softmax(logits, landmarks, slots, segments)
    return jnp.einsum("bhlt,bthk->blhk", weights, v.astype(wide)).astype(v.dtype), lse


def grouped_softmax(
    logits: jax.Array, landmarks: jax.Array, slots: jax.Array, segments: tuple[jax.Array, jax.Array] | None = None
) -> tuple[jax.Array, jax.Array]:
    """The weights of the tokens [B, H, Lq, Lk], 0 at landmarks, and the log-sum-exp [B, H, Lq], from logits."""
    batch, _, length, count = logits.shape
    landmarks, slots = jnp.broadcast_to(landmarks, (batch, count)), jnp.broadcast_to(slots, (batch, length))
    blocks = jnp.cumsum(landmarks, axis=-1) - landmarks  # a landmark belongs to the block it ends
    block_q, slot_q = jnp.take_along_axis(blocks, slots, -1)[:, None, :, None], slots[:, None, :, None]
    block_k, mark = blocks[:, None, None], landmarks[:, None, None]
    direct = jnp.where(mark, block_k < block_q, (block_k == block_q) & (jnp.arange(count) <= slot_q))
    inner = ~mark & (block_k < block_q)
    if segments is not None:
        seg_q, seg_k = segments[0][:, None, :, None], segments[1][:, None, None]
        same = (seg_q == seg_k) & (seg_q != 0)
        direct, inner = direct & same, inner & same
    outer, lse = _softmax(jnp.where(direct, logits, NEVER), direct)

    def shared(outer: jax.Array, logits: jax.Array, inner: jax.Array, mark: jax.Array, block: jax.Array) -> jax.Array:
        """One row: what each token has of the weight of its block's landmark; there may be as many blocks as keys."""
        logits = jnp.where(inner, logits, NEVER)
        peak = jax.lax.stop_gradient(jax.ops.segment_max(logits, block, count))
        powers = jnp.where(inner, jnp.exp(logits - jnp.maximum(peak, NEVER / 2)[block]), 0.0)
        total = jax.ops.segment_sum(powers, block, count)
        gate = jax.ops.segment_sum(jnp.where(mark, outer, 0.0), block, count)
        return powers * (gate / jnp.where(total > 0, total, 1.0))[block]

    rows = [jnp.broadcast_to(x, logits.shape).reshape(-1, count) for x in (outer, logits, inner, mark, block_k)]
    return jnp.where(mark, 0.0, outer) + jax.vmap(shared)(*rows).reshape(logits.shape), lse


def _softmax(logits: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Over the last axis where ``seen``; zeros and -inf for a row that sees nothing."""
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    powers = jnp.where(seen, jnp.exp(logits - jnp.maximum(top, NEVER / 2)), 0.0)
    total = powers.sum(-1, keepdims=True)
    safe = jnp.where(total > 0, total, 1.0)
    return powers / safe, jnp.where(total > 0, jnp.log(safe) + top, -jnp.inf)[..., 0]
