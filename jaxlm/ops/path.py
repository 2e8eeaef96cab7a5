"""PaTH attention: softmax over q_i^T H_i H_{i-1} ... H_{j+1} k_j, with H_s = I - beta_s w_s w_s^T.

Within a block of C tokens the products are had at once (the UT transform): with A = I + tril(beta W W^T, -1), and Z and
X the solutions of A Z = beta W and A X = beta tril(W K^T, -1), counting from the block's first token,

    H_i ... H_1 = I - sum_{t <= i} w_t z_t^T
    q_i^T H_i ... H_{j+1} k_j = (Q K^T - tril(Q W^T) X)_ij
    H_C ... H_{j+1} k_j = k_j - sum_t X_tj w_t

so that between blocks a query moves back to each earlier block's end by one K x K product per block, and meets there
the keys that were moved to it. A block of queries meets all keys of its row at once: memory is O(C (T + L)), and in the
backward pass, where the block is computed again, O(L K) more. All of it is float32.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.ops.triangular import unit_lower_inverse

_EXACT = jax.lax.Precision.HIGHEST  # an error in a product is carried on along the row


class Turns(NamedTuple):
    """What each token does to the keys before it.

    Attributes:
      w: [B, L, G, K], of unit length.
      beta: [B, L, G] in (0, 2); 0 on padding.
    """

    w: jax.Array
    beta: jax.Array


class Keys(NamedTuple):
    """Keys with what is known of them.

    Attributes:
      k: [B, T, G, K]. Of earlier tokens: as transformed by every token since.
      v: [B, T, G, V].
      segment: int32 [B, T]; 0 is seen by nobody.
      sums: float32 [B, T, H], running sums of the logarithms of forget gates; None for no gate.
    """

    k: jax.Array
    v: jax.Array
    segment: jax.Array
    sums: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Logits:
    """What becomes of the products.

    Attributes:
      scale: their factor.
      soft_cap: if positive, scaled logits become ``cap * tanh(logits / cap)``.
      gate_first: the forget gates are added before the scale, not after.
    """

    scale: float
    soft_cap: float = 0.0
    gate_first: bool = False

    def weights(
        self, products: jax.Array, sums_q: jax.Array | None, sums_k: jax.Array | None, seen: jax.Array
    ) -> jax.Array:
        """Softmax over the last axis of products [B, G, R, C, T], gates' sums [B, G, R, C] and [B, G, R, T]; 0 in a row
        that sees nothing.
        """
        gate = 0.0 if sums_q is None or sums_k is None else sums_q[..., None] - sums_k[..., None, :]
        logits = self.scale * (products + gate if self.gate_first else products)
        if self.soft_cap:
            logits = self.soft_cap * jnp.tanh(logits / self.soft_cap)
        if not self.gate_first:
            logits = logits + gate
        logits = jnp.where(seen, logits, -1e30)
        weights = jnp.where(seen, jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))), 0.0)
        total = weights.sum(-1, keepdims=True)
        return weights / jnp.where(total > 0, total, 1.0)


def path_attention(
    q: jax.Array,
    new: Keys,
    turns: Turns,
    logits: Logits,
    past: Keys | None = None,
    *,
    block: int = 64,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Attention of L tokens over themselves and, before them, those of ``past``.

    Args:
      q: [B, L, H, K], H a multiple of G.
      new: of the same tokens, keys not transformed.
      turns: of the same tokens; padding turns nothing.
      logits: scale, cap and gate.
      past: earlier tokens; None for none.
      block: C, tokens whose products are had at once.

    Returns:
      [B, L, H, V] in v's dtype, 0 where a query sees no key; the new keys [B, L, G, K] and the past ones [B, T, G, K]
      as transformed by all L tokens, float32 (float64 for such queries). None for no past.
    """
    kind = jnp.promote_types(q.dtype, jnp.float32)
    batch, length, heads, width = q.shape
    groups = new.k.shape[2]
    size = min(block, length)
    count = -(-length // size)

    def blocks(x: jax.Array) -> jax.Array:
        """[B, L, ...] -> [blocks, B, C, ...], padded with zeros: tokens of segment 0 that turn nothing."""
        x = jnp.pad(x, ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    queries = jnp.moveaxis(blocks(q.astype(kind)).reshape(count, batch, size, groups, -1, width), 2, 4)
    k, w = (_by_group(blocks(x.astype(kind))) for x in (new.k, turns.w))
    beta = jnp.moveaxis(blocks(_of_real(turns.beta, new.segment).astype(kind)), -1, -2)
    z, x = _solved(k, w, beta)
    moved = k - _times("nbgtj,nbgtk->nbgjk", x, w)
    keys = _row(_by_group(blocks(new.v)), 2), _row(blocks(new.segment), 1)
    segments = blocks(new.segment)
    sums = None if new.sums is None else _by_head(blocks(new.sums), groups)
    old = None if past is None else _by_group(past.k.astype(kind))

    def row(index: jax.Array, q: jax.Array, own: tuple[jax.Array, ...]) -> jax.Array:
        """One block of queries [B, G, R, C, K] against the keys of all blocks, and the past."""
        k, w_own, z_own, x = own
        met = jnp.tril(_times("bgrck,bgtk->bgrct", q, w_own))
        local = _times("bgrck,bgtk->bgrct", q, k) - _times("bgrct,bgtj->bgrcj", met, x)
        start = q - _times("bgrct,bgtk->bgrck", met, z_own)

        def back(q: jax.Array, earlier: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            at, w, z = earlier
            further = q - _times("bgrct,bgtk->bgrck", _times("bgrck,bgtk->bgrct", q, w), z)
            return jnp.where(at < index, further, q), q

        first, ends = jax.lax.scan(back, start, (jnp.arange(count), w, z), reverse=True)
        products = _times("nbgrck,nbgtk->bgrcnt", ends, moved)
        products = jnp.where((jnp.arange(count) == index)[:, None], local[..., None, :], products)
        products = products.reshape(*local.shape[:4], -1)
        values, marks = keys
        seen = jnp.arange(count * size) <= (index * size + jnp.arange(size))[:, None]
        seen = seen & _same(segments[index], marks)
        gates = None if sums is None else _row(sums, 3)
        if past is not None and old is not None:
            products = jnp.concatenate((_times("bgrck,bgtk->bgrct", first, old), products), -1)
            seen = jnp.concatenate((_same(segments[index], past.segment), seen), -1)
            values = jnp.concatenate((_by_group(past.v), values), 2)
            if gates is not None and past.sums is not None:
                gates = jnp.concatenate((_by_head(past.sums, groups), gates), -1)
        own_sums = None if sums is None else sums[index]
        weights = logits.weights(products, own_sums, gates, seen[:, None, None])
        return _times("bgrct,bgtv->bcgrv", weights, values.astype(kind))

    out = jax.lax.map(jax.checkpoint(lambda one: row(*one)), (jnp.arange(count), queries, (k, w, z, x)))
    out = jnp.moveaxis(out, 0, 1).reshape(batch, count * size, heads, -1)[:, :length].astype(new.v.dtype)

    def ahead(later: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        """``later``: the product [B, G, K, K] of the turns of all later blocks."""
        w, z, moved = block
        with_this = later - _times("bgkt,bgtj->bgkj", _times("bgkj,bgtj->bgkt", later, w), z)
        return with_this, _times("bgkj,bgtj->bgtk", later, moved)

    unit = jnp.broadcast_to(jnp.eye(width, dtype=kind), (batch, groups, width, width))
    whole, ends = jax.lax.scan(ahead, unit, (w, z, moved), reverse=True)
    after = jnp.moveaxis(ends, (0, 2), (1, 3)).reshape(batch, -1, groups, width)[:, :length]
    if old is None:
        return out, after, None
    if count == 1:  # a rank of C, and not a K x K product for each cached key
        old = old - _times("bgst,bgtk->bgsk", _times("bgsk,bgtk->bgst", old, z[0]), w[0])
    else:
        old = _times("bgkj,bgtj->bgtk", whole, old)
    return out, after, _by_group(old)


def reference(
    q: jax.Array, new: Keys, turns: Turns, logits: Logits, past: Keys | None = None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """`path_attention` as the formula reads: token after token, each turning every key that came before it."""
    kind = jnp.promote_types(q.dtype, jnp.float32)
    batch, length, heads, width = q.shape
    groups, earlier = new.k.shape[2], 0 if past is None else past.k.shape[1]
    met = new if past is None else jax.tree.map(lambda a, b: jnp.concatenate((a, b), 1), past, new)
    beta = _of_real(turns.beta, new.segment).astype(kind)

    def token(k: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        w, b = turns.w[:, i].astype(kind), beta[:, i]
        turned = k - b[:, None, :, None] * _times("btgk,bgk->btg", k, w)[..., None] * w[:, None]
        k = jnp.where((jnp.arange(k.shape[1]) < earlier + i)[:, None, None], turned, k)
        return k, _times("bgrk,btgk->bgrt", q[:, i].astype(kind).reshape(batch, groups, -1, width), k)

    k, products = jax.lax.scan(token, met.k.astype(kind), jnp.arange(length))
    seen = jnp.arange(k.shape[1]) <= earlier + jnp.arange(length)[:, None]
    seen = seen & _same(new.segment, met.segment)
    sums_q, sums_k = (None if keys.sums is None else _by_head(keys.sums, groups) for keys in (new, met))
    weights = logits.weights(jnp.moveaxis(products, 0, 3), sums_q, sums_k, seen[:, None, None])
    out = _times("bgrct,btgv->bcgrv", weights, met.v.astype(kind)).reshape(batch, length, heads, -1).astype(new.v.dtype)
    return out, k[:, earlier:], None if past is None else k[:, :earlier]


def _solved(k: jax.Array, w: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Z and X of each block, from k, w [..., C, K] and beta [..., C]."""
    width = w.shape[-1]
    between = beta[..., None] * jnp.tril(_times("...tk,...sk->...ts", w, w), -1)
    right = jnp.concatenate((w, jnp.tril(_times("...tk,...sk->...ts", w, k), -1)), -1) * beta[..., None]
    solved = _times("...ts,...sk->...tk", unit_lower_inverse(between), right)
    return solved[..., :width], solved[..., width:]


def _times(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, precision=_EXACT)


def _of_real(beta: jax.Array, segment: jax.Array) -> jax.Array:
    return jnp.where((segment != 0)[..., None], beta, 0)


def _same(seg_q: jax.Array, seg_k: jax.Array) -> jax.Array:
    """Whether a query [B, L] and a key [B, T] that is no padding share a segment."""
    return (seg_q[..., None] == seg_k[:, None, :]) & (seg_k != 0)[:, None, :]


def _by_group(x: jax.Array) -> jax.Array:
    """[..., C, G, K] -> [..., G, C, K], or back."""
    return jnp.moveaxis(x, -2, -3)


def _by_head(x: jax.Array, groups: int) -> jax.Array:
    """[..., C, H] -> [..., G, R, C]."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], groups, -1), -3, -1)


def _row(x: jax.Array, axis: int) -> jax.Array:
    """Blocks [n, ...] laid end to end along ``axis`` of each."""
    joined = jnp.moveaxis(x, 0, axis)
    return joined.reshape(*joined.shape[:axis], -1, *joined.shape[axis + 2 :])
