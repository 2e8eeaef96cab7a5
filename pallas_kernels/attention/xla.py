"""Attention for any XLA device: grouped matmuls, and query blocks that never touch the keys ahead of them.

Under a causal mask on rows in order, half of the score square is empty. Cutting the queries into n blocks, each against
the keys up to its own end, computes (n + 1) / 2n of it; four blocks pay on a CPU, where each is still a good matmul.

The softmax is divided out after the weighted sum, [l, K] in place of [l, t] numbers (Dao et al. 2022, FlashAttention),
and the mask is added, so that the backward pass reads the scores once and selects nothing.

Three pieces have hand-written gradients, because of how JAX writes the automatic ones: a matmul's with respect to its
right operand transposes the cotangent, here the widest array there is; that of overlapping slices pads each to the full
length. On a CPU the two cost as much as the matmuls. The price is that forward-mode differentiation stops here
(`jax.custom_vjp`); `reference.attention` has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention.reference import NEVER, visible

BLOCKS = 4
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
    """As `reference.attention`; with ``skip_future`` (Lq == Lk) row i sees no key slot beyond i; none is computed."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    q = (q * scale).reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    blocks = max(1, min(BLOCKS, length // SHORTEST_BLOCK)) if skip_future else 1
    edges = [length * i // blocks for i in range(blocks + 1)]
    ends = tuple(edges[1:]) if skip_future else (k.shape[2],)
    outs, lses = [], []
    for start, stop, end, q_block, k_block, v_block in zip(
        edges, edges[1:], ends, jnp.split(q, edges[1:-1], 3), _prefixes(k, ends), _prefixes(v, ends), strict=False
    ):
        rows, cols = slice(start, stop), slice(0, end)
        out, lse = _block(
            q_block,
            k_block,
            v_block,
            seen=visible(
                mask,
                pos_q[:, rows],
                pos_k[:, cols],
                None if seg_q is None else seg_q[:, rows],
                None if seg_k is None else seg_k[:, cols],
            ),
            bias=None if bias is None else bias.tile(pos_q[:, rows], pos_k[:, cols]),
            soft_cap=soft_cap,
        )
        outs.append(out)
        lses.append(lse)
    out = outs[0] if blocks == 1 else jnp.concatenate(outs, 1)
    lse = lses[0] if blocks == 1 else jnp.concatenate(lses, -1)
    return out.reshape(batch, length, heads, -1), lse.reshape(batch, heads, length)


def _block(
    q: jax.Array, k: jax.Array, v: jax.Array, *, seen: jax.Array, bias: jax.Array | None, soft_cap: float
) -> tuple[jax.Array, jax.Array]:
    """One dense block: scaled q [B, G, R, l, K], k and v [B, G, t, K]; seen [B or 1, H or 1, l, t], bias alike.

    Returns the output [B, l, G, R, K] in v's dtype and the log-sum-exp [B, G, R, l] float32.
    """
    batch, groups, repeats, rows, width = q.shape
    logits = _scores(q.reshape(batch, groups, repeats * rows, width), k).reshape(batch, groups, repeats, rows, -1)
    if soft_cap:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    offset = jnp.zeros((), jnp.float32)
    if bias is not None:
        offset = bias.astype(jnp.float32).reshape(bias.shape[0], groups, repeats, *bias.shape[2:])
    each = (groups, repeats) if seen.shape[1] > 1 else (1, 1)
    logits = logits + jnp.where(seen.reshape(seen.shape[0], *each, *seen.shape[2:]), offset, NEVER)
    # Above the sum of a row that sees nothing, so that its weights are exp(-inf) = 0 and not exp(0).
    top = jnp.maximum(jax.lax.stop_gradient(logits.max(-1, keepdims=True)), NEVER / 2)
    weights = jnp.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    out = _weighted_sum(weights.reshape(batch, groups, repeats * rows, -1), v)
    out = (out.reshape(batch, groups, repeats, rows, -1) / safe).astype(v.dtype)
    lse = jnp.where(some, jnp.log(safe) + top, -jnp.inf)[..., 0]
    return out.transpose(0, 3, 1, 2, 4), lse


_matmul = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """q k^T: [B, G, m, K], [B, G, t, K] -> float32 [B, G, m, t]."""
    return _matmul("bgmk,bgtk->bgmt", q, k)


def _scores_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    q, k = saved
    g = g.astype(q.dtype)
    dk = _matmul("bgmk,bgmt->bgkt", q, g).swapaxes(2, 3)  # transposes q and the result, each K wide, not g
    return _matmul("bgmt,bgtk->bgmk", g, k).astype(q.dtype), dk.astype(k.dtype)


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_backward)


@jax.custom_vjp
def _weighted_sum(weights: jax.Array, v: jax.Array) -> jax.Array:
    """weights v: float32 [B, G, m, t], [B, G, t, K] -> float32 [B, G, m, K], multiplied in v's dtype."""
    return _matmul("bgmt,bgtk->bgmk", weights.astype(v.dtype), v)


def _weighted_sum_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights, v = saved
    g = g.astype(v.dtype)
    dv = _matmul("bgmk,bgmt->bgkt", g, weights.astype(v.dtype)).swapaxes(2, 3)
    return _matmul("bgmk,bgtk->bgmt", g, v), dv.astype(v.dtype)


_weighted_sum.defvjp(lambda weights, v: (_weighted_sum(weights, v), (weights, v)), _weighted_sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _prefixes(x: jax.Array, ends: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """x[:, :, :end] for each of the rising ``ends``, the last being the length of x [B, G, t, K]."""
    return tuple(x[:, :, :end] for end in ends)


def _prefixes_backward(ends: tuple[int, ...], _: None, grads: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    # Added in place, in the [K, t] layout in which the two matmuls above leave them.
    total = grads[-1].swapaxes(2, 3)
    for end, g in zip(ends[:-1], grads[:-1], strict=True):
        part = total[..., :end] + g.swapaxes(2, 3)
        total = jax.lax.dynamic_update_slice(total, part, (0, 0, 0, 0))
    return (total.swapaxes(2, 3),)


_prefixes.defvjp(lambda x, ends: (_prefixes(x, ends), None), _prefixes_backward)
