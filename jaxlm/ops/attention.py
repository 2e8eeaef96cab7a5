"""Scaled dot-product attention: one function, several implementations tried in order."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.types import Mask, TileBias
from pallas_kernels.attention import reference, xla

IMPLEMENTATIONS = {"xla": xla.attention, "reference": reference.attention}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask,
    positions: tuple[jax.Array, jax.Array] | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    bias: TileBias | None = None,
    scale: float | None = None,
    soft_cap: float = 0.0,
    ordered: bool | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + bias) v over the keys that ``mask`` shows, per segment.

    Args:
      q: [B, Lq, H, K].
      k, v: [B, Lk, G, K] with G dividing H (grouped-query attention).
      mask: which key positions a query position sees.
      positions: int32 [B or 1, Lq] and [B or 1, Lk]; None counts both from 0, the last query on the last key.
      segment_ids: int32 [B, Lq] and [B, Lk]; attention stays within a segment, and segment 0 is padding.
      bias: an additive bias evaluated per tile.
      scale: factor of the logits; None means 1 / sqrt(K).
      soft_cap: if positive, ``cap * tanh(logits / cap)`` before the bias.
      ordered: a promise that Lq == Lk and positions rise along the row within each segment, which lets a causal mask
        skip the keys ahead; None infers it (true where positions are None and Lq == Lk).
      implementation: ``"xla"``, ``"reference"``, or None for the first that serves.
      return_lse: also return the log-sum-exp of the logits, float32 [B, H, Lq].

    Returns:
      [B, Lq, H, K] in v's dtype; a query that sees no key gives 0 (and log-sum-exp -inf).

    Raises:
      ConfigError: an unknown implementation, or shapes that do not fit.
    """
    if q.ndim != 4 or k.ndim != 4 or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[2] % k.shape[2]:
        raise ConfigError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} are not [B,Lq,H,K], [B,Lk,G,K], [B,Lk,G,K], G | H"
        )
    if implementation is not None:
        choose("attention implementation", implementation, IMPLEMENTATIONS)
    if ordered is None:
        ordered = positions is None and q.shape[1] == k.shape[1]
    if positions is None:
        keys = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
        positions = keys[:, k.shape[1] - q.shape[1] :], keys
    seg_q, seg_k = segment_ids if segment_ids is not None else (None, None)
    out, lse = IMPLEMENTATIONS[implementation or "xla"](
        q,
        k,
        v,
        mask=mask.pointwise,
        pos_q=positions[0],
        pos_k=positions[1],
        seg_q=seg_q,
        seg_k=seg_k,
        bias=bias,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        soft_cap=soft_cap,
        skip_future=ordered and mask.causal,
    )
    return (out, lse) if return_lse else out


def merge(o1: jax.Array, lse1: jax.Array, o2: jax.Array, lse2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention over the union of two disjoint key sets, from the results of each.

    Args:
      o1, o2: [B, L, H, K].
      lse1, lse2: float32 [B, H, L]; -inf where that set holds no visible key.

    Returns:
      The merged output and log-sum-exp; 0 and -inf where both sets are empty, with finite gradients.
    """
    top = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(lse1, lse2), -1e30))
    w1, w2 = jnp.exp(lse1 - top), jnp.exp(lse2 - top)
    total = w1 + w2
    safe = jnp.where(total > 0, total, 1.0)
    lse = jnp.where(total > 0, jnp.log(safe) + top, -jnp.inf)
    a, b = ((w / safe).transpose(0, 2, 1)[..., None] for w in (w1, w2))
    return (a * o1.astype(jnp.float32) + b * o2.astype(jnp.float32)).astype(o1.dtype), lse
