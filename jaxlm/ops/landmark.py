"""Landmark attention (Mohtashami and Jaggi 2023): one function, several implementations tried in order.

A query's softmax runs over the tokens of its own block and the landmarks that end earlier blocks; each earlier block
shares its landmark's weight among its tokens by a softmax of its own (`pallas_kernels.landmark_attention.core` has the
formula and its gradients).
"""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.errors import ConfigError, choose
from pallas_kernels.block_sparse_attention.call import target
from pallas_kernels.block_sparse_attention.core import Options, Request
from pallas_kernels.landmark_attention import call, reference
from pallas_kernels.landmark_attention.core import Places

BACKENDS = ("triton", "tpu", "xla")  # in the order in which they are tried
IMPLEMENTATIONS = (*BACKENDS, "reference")


def landmark_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    period: int | None = None,
    landmarks: jax.Array | None = None,
    slots: jax.Array | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    scale: float | None = None,
    soft_cap: float = 0.0,
    implementation: str | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The grouped softmax of scale q k^T over blocks of keys, times v.

    Args:
      q: [B, Lq, H, K], floating point.
      k, v: [B, Lk, G, K] and [B, Lk, G, V] with G dividing H (grouped-query attention), in q's dtype.
      period: of blocks that each fill ``period`` slots of the row of keys, a landmark in the last; this is what the
        fast implementations take. Segments may begin and end anywhere in a block.
      landmarks: boolean [B or 1, Lk], in place of ``period``: landmarks anywhere, any number.
      slots: int32 [B or 1, Lq], the slot of each query in the row of keys, rising but for padding (of segment 0); None
        puts the last query on the last key.
      segment_ids: int32 [B, Lq] and [B, Lk]; attention stays within a segment, and segment 0 is padding.
      scale: factor of the logits; None means 1 / sqrt(K).
      soft_cap: if positive, logits become ``cap * tanh(logits / cap)``.
      implementation: one of `IMPLEMENTATIONS`, or None for the first that serves.
      return_lse: also return the log-sum-exp of the outer softmax, float32 [B, H, Lq]; it is differentiable.

    Returns:
      [B, Lq, H, V] in v's dtype; a query that sees no key gives 0 (and log-sum-exp -inf).

    Raises:
      ConfigError: shapes or dtypes that do not fit, an unknown implementation, or one that cannot serve, with its
        reason.
    """
    _check(q, k, v, period, landmarks, slots, segment_ids)
    if implementation is not None:
        choose("landmark attention implementation", implementation, IMPLEMENTATIONS)
    options = Options(q.shape[-1] ** -0.5 if scale is None else scale, soft_cap, target().interpret)
    out, lse = _serve(q, k, v, period, landmarks, slots, segment_ids, options, implementation)
    return (out, lse) if return_lse else out


def _serve(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    period: int | None,
    landmarks: jax.Array | None,
    slots: jax.Array | None,
    segments: tuple[jax.Array, jax.Array] | None,
    options: Options,
    implementation: str | None,
) -> tuple[jax.Array, jax.Array]:
    offset = k.shape[1] - q.shape[1]
    for name in BACKENDS:
        if implementation not in (None, name):
            continue
        backend = importlib.import_module(f"pallas_kernels.landmark_attention.{name}")
        request = _request(q, k, v, options)
        reason = "landmarks have no period" if period is None else backend.supports(request, period)
        if reason is None and period is not None:
            request = dataclasses.replace(request, **_blocks(backend, request, period))
            places = Places(slots, segments, period, offset)
            return call.attention(q, k, v, places, options, backend, request)
        if implementation:
            raise ConfigError(f"landmark attention implementation {name!r} cannot serve this call: {reason}")
    keys = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
    if period is not None:
        landmarks = (keys + 1) % period == 0
    assert landmarks is not None
    return reference.attention(
        q,
        k,
        v,
        landmarks=landmarks,
        slots=keys[:, offset:] if slots is None else slots,
        segments=segments,
        scale=options.scale,
        soft_cap=options.soft_cap,
    )


def _blocks(backend: ModuleType, request: Request, period: int) -> dict[str, int]:
    return dict(zip(("block_q", "block_k"), backend.blocks(request, period), strict=True))


def _request(q: jax.Array, k: jax.Array, v: jax.Array, options: Options) -> Request:
    return Request(
        platform=target().platform,
        chip=target().chip,
        dtype=str(q.dtype),
        batch=q.shape[0],
        heads=q.shape[2],
        groups=k.shape[2],
        width=q.shape[3],
        value_width=v.shape[3],
        length_q=q.shape[1],
        length_k=k.shape[1],
        block_q=0,
        block_k=0,
        interpret=options.interpret,
    )


def _check(q: jax.Array, k: jax.Array, v: jax.Array, period: Any, landmarks: Any, slots: Any, segments: Any) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ConfigError(
            f"landmark attention: q {q.shape}, k {k.shape}, v {v.shape} are not [B,Lq,H,K], [B,Lk,G,K], [B,Lk,G,V]"
        )
    if q.shape[2] % k.shape[2]:
        raise ConfigError(
            f"landmark attention: {q.shape[2]} query heads are not divisible by {k.shape[2]} key/value heads"
        )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ConfigError(f"landmark attention: {name} has dtype {x.dtype}; expected a floating-point one")
    if (period is None) == (landmarks is None):
        raise ConfigError("landmark attention: give either the period of the landmarks or where they are")
    if period is not None and period < 2:
        raise ConfigError(
            f"landmark attention: expected a period of at least 2 (a token and its landmark), got {period}"
        )
    if slots is None and q.shape[1] > k.shape[1]:
        raise ConfigError(f"landmark attention: {q.shape[1]} queries and {k.shape[1]} keys need the queries' slots")
    expected = {"landmarks": (landmarks, k.shape[1]), "slots": (slots, q.shape[1])}
    if segments is not None:
        expected |= {
            "segment_ids of queries": (segments[0], q.shape[1]),
            "segment_ids of keys": (segments[1], k.shape[1]),
        }
    for name, (x, length) in expected.items():
        if x is not None and (x.ndim != 2 or x.shape[1] != length or x.shape[0] not in (1, q.shape[0])):
            raise ConfigError(f"landmark attention: {name} {x.shape} is not [{q.shape[0]} or 1, {length}]")
