"""The differentiable call of a back end: layout, padding, and the one `jax.custom_vjp` of all of them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.selective_scan.core import Arrays, Request


def request(u: Any, delta: Any, a: Any, b: Any, c: Any, platform: str, interpret: Any = False) -> Request:
    """A call of `scan` as back ends judge it; the arrays may be shapes."""
    dtypes = tuple(str(x.dtype) for x in (u, delta, b, c))
    return Request(platform, dtypes, u.shape[2] // b.shape[2], a.shape[1], bool(interpret))


def scan(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    *,
    backend: ModuleType,
    epochs: jax.Array | None = None,
    state: jax.Array | None = None,
    tokens: int | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """h_t = exp(delta_t a) h_{t-1} + delta_t b_t u_t, y_t = c_t . h_t by ``backend`` (`core`), differentiable but for
    epochs.

    Args:
      u: [B, L, C]; delta: [B, L, C], >= 0. A token with delta = 0 leaves the state as it is.
      a: [C, N], <= 0.
      b, c: [B, L, G, N]; channel i reads group i // (C / G).
      epochs: int32 [B, L], not falling: two tokens meet only within an epoch, and tokens of epoch 0 continue ``state``.
      state: float32 [B, C, N] before these tokens; None for zeros.
      tokens: of a chunk, where the back end takes any number (`xla`); None for its own.
      interpret: True to run the kernel in an interpreter, or that interpreter's parameters.

    Returns:
      [B, L, C] in u's dtype, and the float32 state [B, C, N] after the last token.
    """
    (batch, length, channels), (groups, states) = u.shape, b.shape[2:]
    sizes = backend.sizes(request(u, delta, a, b, c, "", interpret))
    sizes = sizes._replace(tokens=tokens or sizes.tokens)
    width = channels // groups
    more_tokens, more_channels, more_states = -length % sizes.tokens, -width % sizes.channels, sizes.states - states
    if state is None:
        state = jnp.zeros((batch, channels, states), jnp.float32)

    def channelled(x: jax.Array, axis: int, more: list[tuple[int, int]]) -> jax.Array:
        """``x`` with zeros behind the channels of each group, on ``axis``, and ``more`` on the axes."""
        shape = x.shape
        x = x.reshape(*shape[:axis], groups, width, *shape[axis + 1 :])
        x = jnp.pad(x, [*more[: axis + 1], (0, more_channels), *more[axis + 1 :]])
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def grouped(x: jax.Array) -> jax.Array:
        return jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, more_tokens), (0, more_states)))

    @jax.custom_vjp
    def run(arrays, state):
        return backend.forward(arrays, state, sizes, interpret, keep=False)[:2]

    def run_forward(arrays, state):
        y, final, starts = backend.forward(arrays, state, sizes, interpret, keep=True)
        return (y, final), (arrays, starts)

    def run_backward(saved, cotangents):
        arrays, starts = saved
        grads, dstate = backend.backward(arrays, starts, sizes, interpret, *cotangents)
        grads = grads._replace(a=grads.a.sum(0))
        stays = None if arrays.stays is None else jnp.zeros_like(arrays.stays)
        return jax.tree.map(lambda g, x: g.astype(x.dtype), grads._replace(stays=stays), arrays), dstate

    run.defvjp(run_forward, run_backward)
    none, added, padded = (0, 0), (0, more_tokens), (0, more_states)
    stays = None
    if epochs is not None:
        stays = (jnp.diff(epochs, axis=1, prepend=0) == 0).astype(jnp.float32)
        stays = jnp.pad(stays, (none, added), constant_values=1.0)
    arrays = Arrays(
        u=channelled(u, 2, [none, added, none]),
        delta=channelled(delta, 2, [none, added, none]),
        a=channelled(a.astype(jnp.float32), 0, [none, padded]),
        b=grouped(b),
        c=grouped(c),
        stays=stays,
    )
    y, final = run(arrays, channelled(state.astype(jnp.float32), 1, [none, none, padded]))
    y = y.reshape(batch, -1, groups, width + more_channels)[:, :length, :, :width]
    final = final.reshape(batch, groups, width + more_channels, -1)[:, :, :width, :states]
    return y.reshape(u.shape), final.reshape(batch, channels, states)
