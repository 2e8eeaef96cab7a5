"""Softplus attention: rows are l1-normalised softplus of the logits, and may be sharpened by a second normalisation.

    A = l1( softplus( c ln(n_i) s_ij + b_ij ) ),     A' = l1( relu( n_i A - o )^p )

n_i counts the keys that query i sees. The l1 norm of softplus is the softmax of its logarithm, which, unlike the
formula, cannot underflow where every logit of a row is far below 0; and relu's power is taken of ratios to the row's
largest, since n_i^p itself is no float32. A block of queries meets all keys at once: memory is O(block x keys), in the
backward pass too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.mask import Mask
from jaxlm.core.types import RowBias, TileBias
from pallas_kernels.attention.reference import visible


class View(NamedTuple):
    """One way in which queries meet keys: q [B, L, H, K], k [B, T, G, K], where (None: everywhere), and a bias."""

    q: jax.Array
    k: jax.Array
    region: Mask | None
    bias: TileBias | RowBias | None


class Places(NamedTuple):
    """Where queries and keys are: int32 positions [B or 1, L] and [B or 1, T], segments [B, L] and [B, T]."""

    pos_q: jax.Array
    pos_k: jax.Array
    seg_q: jax.Array
    seg_k: jax.Array


@dataclasses.dataclass(frozen=True)
class Weighting:
    """The constants of the formula.

    Attributes:
      scale: of q k^T.
      soft_cap: if positive, scaled products become ``cap * tanh(product / cap)``.
      length: c, the factor of ln(n_i); 0 for no such factor at all.
      power: p; 0 for A, without re-weighting.
      offset: o.
    """

    scale: float
    soft_cap: float
    length: float
    power: float
    offset: float

    def logits(self, products: jax.Array, seen: jax.Array) -> jax.Array:
        """Of products [B, H, l, T], bias left out."""
        scaled = self.scale * products
        if self.soft_cap:
            scaled = self.soft_cap * jnp.tanh(scaled / self.soft_cap)
        if self.length:
            scaled = scaled * (self.length * jnp.log(jnp.maximum(seen.sum(-1, keepdims=True), 1).astype(jnp.float32)))
        return scaled

    def weights(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """Of logits [B, H, l, T], over the last axis; 0 where a query sees nothing."""
        low = logits < -15  # where softplus is exp, to float32
        logs = jnp.where(low, logits, jnp.log(jax.nn.softplus(jnp.where(low, 0.0, logits))))
        logs = jnp.where(seen, logs, -1e30)
        a = jnp.where(seen, jnp.exp(logs - jax.lax.stop_gradient(logs.max(-1, keepdims=True))), 0.0)
        a = _l1(a, a)
        if not self.power:
            return a
        kept = jax.nn.relu(a * seen.sum(-1, keepdims=True) - self.offset)
        top = jax.lax.stop_gradient(kept.max(-1, keepdims=True))
        kept = jnp.where(kept > 0, kept / jnp.where(top > 0, top, 1.0), 0.0) ** self.power
        return _l1(jnp.where(seen, kept, 0.0), a)


def softplus_attention(
    views: list[View], v: jax.Array, places: Places, *, mask: Mask, weighting: Weighting, block: int = 128
) -> jax.Array:
    """Softplus attention over views that show each pair at most once, one block of queries after the other.

    Args:
      views: how queries meet keys; a pair of no view's region is not seen.
      v: [B, T, G, V].
      places: positions and segments; nothing of segment 0 is seen.
      mask: which keys a query sees.
      weighting: the constants.
      block: queries that meet all keys at once.

    Returns:
      [B, L, H, V] in v's dtype; 0 where a query sees no key.
    """
    length = places.seg_q.shape[1]
    size = min(block, length)

    def blocks(x: jax.Array) -> jax.Array:
        """[B, L, ...] -> [blocks, B, size, ...], padded with zeros."""
        x = jnp.pad(x, ((0, 0), (0, -length % size), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    mine = [(view.q, view.bias.queries if isinstance(view.bias, RowBias) else ()) for view in views]

    def some(block: Any) -> jax.Array:
        queries, pos_q, seg_q = block
        at = places._replace(pos_q=pos_q, seg_q=seg_q)
        here = [
            view._replace(q=q, bias=_of_block(view.bias, rows)) for view, (q, rows) in zip(views, queries, strict=True)
        ]
        return _whole(here, v, at, mask, weighting)

    out = jax.lax.map(jax.checkpoint(some), jax.tree.map(blocks, (mine, places.pos_q, places.seg_q)))
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], -1, *out.shape[3:])[:, :length]


def reference(views: list[View], v: jax.Array, places: Places, *, mask: Mask, weighting: Weighting) -> jax.Array:
    """`softplus_attention` as the formula reads, L x T at once."""
    logits, seen = _logits(views, places, mask, weighting)
    count = seen.sum(-1, keepdims=True)
    a = jnp.where(seen, jax.nn.softplus(logits), 0.0)
    a = a / jnp.maximum(a.sum(-1, keepdims=True), 1e-30)
    if weighting.power:
        sharp = jax.nn.relu(count * a - weighting.offset) ** weighting.power
        total = sharp.sum(-1, keepdims=True)
        a = jnp.where(total > 0, sharp / jnp.where(total > 0, total, 1.0), a)
    return _read(a, v)


def _whole(views: list[View], v: jax.Array, places: Places, mask: Mask, weighting: Weighting) -> jax.Array:
    logits, seen = _logits(views, places, mask, weighting)
    return _read(weighting.weights(logits, seen), v)


def _logits(views: list[View], places: Places, mask: Mask, weighting: Weighting) -> tuple[jax.Array, jax.Array]:
    """float32 logits [B, H, l, T], and which of them count."""
    regions = [mask if view.region is None else mask & view.region for view in views]
    parts = [visible(region.pointwise, *places) for region in regions]
    seen = parts[0]
    for part in parts[1:]:
        seen = seen | part
    logits = jnp.float32(0)
    for view, part in zip(views, parts, strict=True):
        k = jnp.repeat(view.k, view.q.shape[2] // view.k.shape[2], axis=2)
        one = weighting.logits(jnp.einsum("blhk,bthk->bhlt", view.q, k, preferred_element_type=jnp.float32), seen)
        if isinstance(view.bias, RowBias):
            bias = view.bias
            one = one + bias.rule(bias.queries, bias.keys, bias.heads, places.pos_q, places.pos_k, part)
        elif view.bias is not None:
            one = one + view.bias.tile(places.pos_q, places.pos_k)
        logits = jnp.where(part, one, logits)
    return logits, seen


def _of_block(bias: TileBias | RowBias | None, queries: Any) -> TileBias | RowBias | None:
    return dataclasses.replace(bias, queries=queries) if isinstance(bias, RowBias) else bias


def _l1(x: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Rows of x >= 0 that sum to 1; those without any entry are ``otherwise``'s."""
    total = x.sum(-1, keepdims=True)
    return jnp.where(total > 0, x / jnp.where(total > 0, total, 1.0), otherwise)


def _read(weights: jax.Array, v: jax.Array) -> jax.Array:
    v32 = jnp.repeat(v.astype(jnp.float32), weights.shape[1] // v.shape[2], axis=2)
    return jnp.einsum("bhlt,bthv->blhv", weights, v32).astype(v.dtype)
