"""Attention for any XLA device: grouped matmuls, and query blocks that never touch the keys ahead of them.

Under a causal mask on rows in order, half of the score square is empty. Cutting the queries into n blocks, each against
the keys up to its own end, computes (n + 1) / 2n of it; two to four blocks pay on a CPU, where each block is one matmul.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention.reference import NEVER, visible

BLOCKS = 2
SHORTEST_BLOCK = 64


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
    """As `reference.attention`. With ``skip_future`` (Lq == Lk) row i sees no key slot beyond i, and none is computed."""
    length, heads, groups = q.shape[1], q.shape[2], k.shape[2]
    q = q.reshape(*q.shape[:2], groups, heads // groups, q.shape[-1])
    blocks = max(1, min(BLOCKS, length // SHORTEST_BLOCK)) if skip_future else 1
    edges = [length * i // blocks for i in range(blocks + 1)]
    outs, lses = [], []
    for start, stop in zip(edges, edges[1:], strict=False):
        end = stop if skip_future else k.shape[1]
        rows, cols = slice(start, stop), slice(0, end)
        out, lse = _block(
            q[:, rows],
            k[:, cols],
            v[:, cols],
            seen=visible(
                mask,
                pos_q[:, rows],
                pos_k[:, cols],
                None if seg_q is None else seg_q[:, rows],
                None if seg_k is None else seg_k[:, cols],
            ),
            bias=None if bias is None else bias.tile(pos_q[:, rows], pos_k[:, cols]),
            scale=scale,
            soft_cap=soft_cap,
        )
        outs.append(out)
        lses.append(lse)
    out = outs[0] if blocks == 1 else jnp.concatenate(outs, 1)
    lse = lses[0] if blocks == 1 else jnp.concatenate(lses, -1)
    return out.reshape(*out.shape[:2], heads, v.shape[-1]), lse.reshape(lse.shape[0], heads, length)


def _block(q, k, v, *, seen, bias, scale, soft_cap):
    """One dense block: q [B, l, G, R, K], k and v [B, t, G, K], seen [B or 1, l, t], bias [B or 1, H, l, t] or None."""
    batch, rows, groups, repeats, width = q.shape
    q = (q * scale).transpose(0, 2, 3, 1, 4).reshape(batch, groups, repeats * rows, width)
    logits = jnp.einsum("bgmk,btgk->bgmt", q, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, groups, repeats, rows, -1)
    if soft_cap:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if bias is not None:
        logits = logits + bias.reshape(bias.shape[0], groups, repeats, *bias.shape[2:])
    seen = seen[:, None, None]
    logits = jnp.where(seen, logits, NEVER)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(logits - top), 0.0)
    total = weights.sum(-1, keepdims=True)
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    weights = (weights / safe).astype(v.dtype).reshape(batch, groups, repeats * rows, -1)
    out = jnp.einsum("bgmt,btgk->bgmk", weights, v).reshape(batch, groups, repeats, rows, -1)
    lse = jnp.where(some, jnp.log(safe) + top, -jnp.inf)[..., 0]
    return out.transpose(0, 3, 1, 2, 4), lse
