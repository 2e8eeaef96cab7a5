"""The recurrence as it reads, token after token: the specification of the kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def scan(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    epochs: jax.Array | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`call.scan` in the widest of the arrays' dtypes, at least float32: float64 for such inputs."""
    kind = jnp.promote_types(jnp.result_type(u, delta, a, b, c), jnp.float32)
    (batch, length, channels), states = u.shape, a.shape[1]
    u, delta, a, b, c = (x.astype(kind) for x in (u, delta, a, b, c))
    b, c = (jnp.repeat(x, channels // x.shape[2], 2) for x in (b, c))
    epochs = jnp.zeros((batch, length), jnp.int32) if epochs is None else epochs
    stays = (jnp.diff(epochs, axis=1, prepend=0) == 0).astype(kind)
    start = jnp.zeros((batch, channels, states), kind) if state is None else state.astype(kind)

    def token(state: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        u, delta, b, c, stays = now
        fade = jnp.exp(delta[..., None] * a) * stays[:, None, None]
        state = fade * state + (delta * u)[..., None] * b
        return state, (state * c).sum(-1)

    state, out = jax.lax.scan(token, start, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (u, delta, b, c, stays)))
    return jnp.moveaxis(out, 0, 1), state
