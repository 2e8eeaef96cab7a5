"""The differentiable call of a landmark back end: layout, padding, and the one `jax.custom_vjp` of all of them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_attention.core import Options, Request
from pallas_kernels.landmark_attention.core import Places


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, places: Places, options: Options, backend: ModuleType, request: Request
) -> tuple[jax.Array, jax.Array]:
    """Landmark attention by ``backend`` (`core`), differentiable in q, k and v.

    Args:
      q: [B, Lq, H, K]; k, v: [B, Lk, G, K], [B, Lk, G, V], of any lengths.
      places: of these queries and keys.
      request: the call as the back end judges it; its blocks are the tile.

    Returns:
      [B, Lq, H, V] in v's dtype, and the log-sum-exp of the outer softmax, float32 [B, H, Lq], whose cotangent counts;
      0 and -inf for a query that sees no key.
    """
    more_q, more_k = -q.shape[1] % request.block_q, -k.shape[1] % request.block_k
    slots = None if places.slots is None else jnp.pad(places.slots, ((0, 0), (0, more_q)))
    segments = None
    if places.segments is not None:
        segments = tuple(jnp.pad(x, ((0, 0), (0, n))) for x, n in zip(places.segments, (more_q, more_k), strict=True))

    def joined(given: Any) -> Places:
        return Places(*given, period=places.period, offset=places.offset)

    @jax.custom_vjp
    def run(q: jax.Array, k: jax.Array, v: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        return backend.forward(q, k, v, joined(given), options, request)

    def run_forward(q: jax.Array, k: jax.Array, v: jax.Array, given: Any) -> tuple[Any, Any]:
        out, lse = run(q, k, v, given)
        return (out, lse), (q, k, v, given, out, lse)

    def run_backward(saved: Any, cotangents: Any) -> Any:
        q, k, v, given, out, lse = saved
        dout, dlse = cotangents
        some = jnp.isfinite(lse)
        delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - jnp.where(some, dlse, 0.0)
        gradients = backend.backward(
            q, k, v, joined(given), options, request, jnp.where(some, lse, 0.0), delta, dout.astype(v.dtype)
        )
        return *gradients, jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), given)

    run.defvjp(run_forward, run_backward)
    out, lse = run(_laid(q, more_q), _laid(k, more_k), _laid(v, more_k), (slots, segments))
    return out[:, :, : q.shape[1]].transpose(0, 2, 1, 3), lse[:, :, : q.shape[1]]


def _laid(x: jax.Array, more: int) -> jax.Array:
    """[B, L, H, K] -> [B, H, L + more, K], zeros behind."""
    x = x.transpose(0, 2, 1, 3)
    return jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) if more else x
