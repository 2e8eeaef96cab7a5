"""Attention with a bias that reads queries and keys (`jaxlm.core.types.RowBias`): a loop over blocks of whole rows.

Such a bias may need every key of a row (CoPE sums gates along it), so a block of queries meets all keys at once. Memory
is that of one block, O(block x keys), in the backward pass too, where the block is computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.types import RowBias
from pallas_kernels.attention.reference import visible

BLOCK = 128  # queries


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A bias that is there already, float32 [B, H, Lq, Lk], in the form that `pallas_kernels.attention` reads."""

    values: jax.Array

    def tile(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self.values


def attention(
    run: Callable[..., tuple[jax.Array, jax.Array]],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: RowBias,
    mask: Callable[[jax.Array, jax.Array], jax.Array],
    pos_q: jax.Array,
    pos_k: jax.Array,
    seg_q: jax.Array | None,
    seg_k: jax.Array | None,
    whole: bool,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """`pallas_kernels.attention`'s ``run`` with a bias by rows: all of them at once if ``whole``, else block by block.

    Arguments and results are those of `pallas_kernels.attention.reference.attention`.
    """

    def some(q: jax.Array, queries: Any, pos_q: jax.Array, seg_q: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        seen = visible(mask, pos_q, pos_k, seg_q, seg_k)
        values = bias.rule(queries, bias.keys, bias.heads, pos_q, pos_k, seen)
        return run(
            q,
            k,
            v,
            mask=mask,
            bias=Evaluated(values),
            pos_q=pos_q,
            pos_k=pos_k,
            seg_q=seg_q,
            seg_k=seg_k,
            **options,
        )

    length = q.shape[1]
    rows = (q, bias.queries, pos_q, seg_q)
    if whole or length <= BLOCK:
        return some(*rows)

    def blocks(x: jax.Array) -> jax.Array:
        """[B, L, ...] -> [blocks, B, BLOCK, ...], padded with zeros."""
        x = jnp.pad(x, ((0, 0), (0, -length % BLOCK), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, BLOCK, *x.shape[2:]), 1, 0)

    out, lse = jax.lax.map(jax.checkpoint(lambda block: some(*block)), jax.tree.map(blocks, rows))
    out = jnp.moveaxis(out, 0, 1).reshape(out.shape[1], -1, *out.shape[3:])
    lse = jnp.moveaxis(lse, 0, 2).reshape(*lse.shape[1:3], -1)
    return out[:, :length], lse[..., :length]
