"""Additive attention: the score of a query and a key is a small network of their sum, softmax over the keys as ever.

    s_ij = v^T tanh(q_i + k_j)

A query meets all keys in K numbers each, not in one, so a block of few queries meets them at once: memory is
O(block x keys x K), in the backward pass too (Bahdanau et al. 2015).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose
from jaxlm.core.mask import Mask
from jaxlm.core.types import TileBias
from pallas_kernels.attention.reference import visible

IMPLEMENTATIONS = ("xla", "reference")
Places = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def additive_attention(
    q: jax.Array,
    k: jax.Array,
    values: jax.Array,
    scorer: jax.Array,
    places: Places,
    *,
    mask: Mask,
    bias: TileBias | None = None,
    block: int = 16,
    implementation: str | None = None,
) -> jax.Array:
    """Additive attention, one block of queries after the other.

    Args:
      q: [B, L, H, K].
      k: [B, T, G, K], G dividing H. values: [B, T, G, V].
      scorer: v, [H, K].
      places: int32 positions of queries [B or 1, L] and keys [B or 1, T], segments [B, L] and [B, T]; nothing of
        segment 0 is seen.
      mask: which keys a query sees.
      bias: added to the scores.
      block: queries that meet all keys at once.
      implementation: ``"xla"`` (by blocks), ``"reference"`` (all at once); None for the first.

    Returns:
      [B, L, H, V] in the values' dtype; 0 where a query sees no key.
    """
    k, values = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, values))

    def some(queries: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, pos_q, seg_q = queries
        at = pos_q, places[1], seg_q, places[3]
        hidden = jnp.tanh(q[:, :, None].astype(jnp.float32) + k[:, None].astype(jnp.float32))  # [B, l, T, H, K]
        scores = jnp.moveaxis((hidden * scorer.astype(jnp.float32)).sum(-1), -1, 1)
        if bias is not None:
            scores = scores + bias.tile(pos_q, places[1])
        seen = visible(mask.pointwise, *at)
        scores = jnp.where(seen, scores, -1e30)
        weights = jnp.where(seen, jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True))), 0)
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
        return jnp.einsum("bhlt,bthv->blhv", weights, values.astype(jnp.float32)).astype(values.dtype)

    all_queries = q, places[0], places[2]
    if choose("additive_attention: implementation", implementation or "xla", IMPLEMENTATIONS) == "reference":
        return some(all_queries)
    length, size = q.shape[1], min(block, q.shape[1])

    def blocks(x: jax.Array) -> jax.Array:
        """[B, L, ...] -> [blocks, B, size, ...], padded with zeros."""
        x = jnp.pad(x, ((0, 0), (0, -length % size), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    out = jax.lax.map(jax.checkpoint(some), jax.tree.map(blocks, all_queries))
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], -1, *out.shape[3:])[:, :length]
