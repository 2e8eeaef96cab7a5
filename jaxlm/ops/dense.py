"""Matmul with a weight of several input or output axes, done as one 2-D product.

Keeping a fused projection as (D, groups, parts, K) lets each axis shard by name; multiplying it as (D, groups*parts*K)
is what a CPU or MXU wants (4-D einsums cost 1.5x on a CPU).
"""

from __future__ import annotations

import math

import jax


def dense(x: jax.Array, weight: jax.Array, inputs: int = 1) -> jax.Array:
    """x [..., *in] times weight [*in, *out] over its first ``inputs`` axes -> [..., *out], in x's dtype."""
    lead = x.shape[: x.ndim - inputs]
    size = math.prod(weight.shape[:inputs])
    out = x.reshape(*lead, size) @ weight.reshape(size, -1).astype(x.dtype)
    return out.reshape(*lead, *weight.shape[inputs:])
