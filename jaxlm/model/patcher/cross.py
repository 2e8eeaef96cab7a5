"""Cross-attention between bytes and patches: what some patchers pool with, and read patches by."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.attention.mask import Bidirectional
from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Params, Specs
from jaxlm.model.patcher.base import Answer
from jaxlm.ops.attention import attention
from jaxlm.ops.dense import dense


def cross_params(width: int, heads: int, out: int) -> Specs:
    """Of `cross` from ``width`` channels to ``out``. Raises `ConfigError` if heads do not divide the width."""
    require(width % heads == 0, f"a local width of {width} is not divisible by {heads} heads of cross-attention")
    size = width // heads
    return {
        "query": ParamSpec((width, heads, size), (None, "heads", None)),
        "key_value": ParamSpec((width, 2, heads, size), (None, None, "heads", None)),
        "out": ParamSpec((heads, size, out), ("heads", None, None), fan_in=(0, 1)),
    }


def cross(p: Params, queries: jax.Array, keys: jax.Array, ids_q: jax.Array, ids_k: jax.Array) -> jax.Array:
    """Queries [B, N, d] read the keys [B, T, d] of their own id; ids int32 [B, N] and [B, T], 0 reads nothing and gives
    0. Returns [B, N, out]."""
    q = dense(queries, p["query"])
    key_value = dense(keys, p["key_value"])
    k, v = key_value[:, :, 0], key_value[:, :, 1]
    seen = attention(q, k, v, mask=Bidirectional(), segment_ids=(ids_q, ids_k), implementation="xla")
    assert isinstance(seen, jax.Array)
    return dense(seen, p["out"], inputs=2)


def read_patches(p: Params, x: jax.Array, vectors: jax.Array, answer: Answer) -> jax.Array:
    """Bytes x [B, L, d] read the vectors [B, N + 1, n, d] of their latest patch: [B, L, out]."""
    batch, patches, pieces, width = vectors.shape
    ids = jnp.broadcast_to(jnp.repeat(jnp.arange(patches, dtype=jnp.int32) + 1, pieces), (batch, patches * pieces))
    return cross(p, x, vectors.reshape(batch, -1, width), jnp.where(answer.known, answer.index + 1, 0), ids)
