"""The differentiable call of a back end: layout, padding, and the one `jax.custom_vjp` of all of them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.ssd import core


def request(q: Any, k: Any, v: Any, platform: str, interpret: bool = False) -> core.Request:
    """A call of `scan` as back ends judge it; the arrays may be shapes."""
    return core.Request(
        platform=platform,
        dtype=str(jnp.result_type(q.dtype, k.dtype, v.dtype)),
        heads=v.shape[2],
        groups=q.shape[2],
        width=q.shape[3],
        value_width=v.shape[3],
        interpret=bool(interpret),
    )


def scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    *,
    backend: ModuleType,
    epochs: jax.Array | None = None,
    state: jax.Array | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """S_t = exp(g_t) S_{t-1} + k_t v_t^T, o_t = q_t^T S_t by ``backend`` (`core`), differentiable in all but epochs.

    Args:
      q, k: [B, L, G, K]; head h reads group h // (H / G). Not scaled.
      v: [B, L, H, V].
      log_decay: float32 [B, L, H], <= 0. A token with g = 0 and k = 0 leaves the state as it is.
      epochs: int32 [B, L], not falling: two tokens meet only within an epoch, and tokens of epoch 0 continue ``state``.
      state: float32 [B, H, K, V] before these tokens; None for zeros.
      interpret: True to run the kernel in an interpreter, or that interpreter's parameters.

    Returns:
      [B, L, H, V] in v's dtype, and the float32 state [B, H, K, V] after the last token.
    """
    batch, length, heads, value_width = v.shape
    kind = jnp.result_type(q.dtype, k.dtype, v.dtype)
    chunk = backend.chunk(kind)
    more = -length % chunk
    if state is None:
        state = jnp.zeros((batch, heads, q.shape[3], value_width), jnp.float32)
    if epochs is not None:
        epochs = jnp.pad(epochs, ((0, 0), (0, more)), mode="edge")

    @jax.custom_vjp
    def run(q, k, v, log_decay, state, epochs):
        tokens = core.tokens_of(log_decay, epochs, chunk)
        return backend.forward(q, k, v, tokens, state, interpret, keep=False)[:2]

    def run_forward(q, k, v, log_decay, state, epochs):
        tokens = core.tokens_of(log_decay, epochs, chunk)
        out, final, starts = backend.forward(q, k, v, tokens, state, interpret, keep=True)
        return (out, final), (q, k, v, tokens, starts, epochs)

    def run_backward(saved, cotangents):
        q, k, v, tokens, starts, epochs = saved
        dout, dfinal = cotangents
        dq, dk, dv, dsums, dstate = backend.backward(q, k, v, tokens, starts, interpret, dout.astype(v.dtype), dfinal)
        none = None if epochs is None else np.zeros(epochs.shape, jax.dtypes.float0)
        return dq, dk, dv, core.decay_gradient(dsums, chunk), dstate, none

    run.defvjp(run_forward, run_backward)
    laid = [_laid(x.astype(kind), more) for x in (q, k, v)]
    decays = jnp.pad(log_decay.astype(jnp.float32), ((0, 0), (0, more), (0, 0))).transpose(0, 2, 1)
    out, final = run(*laid, decays, state.astype(jnp.float32), epochs)
    return out[:, :, :length].transpose(0, 2, 1, 3).astype(v.dtype), final


def _laid(x: jax.Array, more: int) -> jax.Array:
    """[B, L, H, K] -> [B, H, L + more, K], zeros behind: such tokens leave the state as it is."""
    x = x.transpose(0, 2, 1, 3)
    return jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) if more else x
