"""The recurrence as it reads, token after token: the specification of the kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    epochs: jax.Array | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`call.scan` in the widest of the arrays' dtypes, at least float32: float64 for such inputs."""
    kind = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
    (batch, length, groups, width), heads = q.shape, v.shape[2]
    q, k = (jnp.repeat(x.astype(kind), heads // groups, 2) for x in (q, k))
    epochs = jnp.zeros((batch, length), jnp.int32) if epochs is None else epochs
    fade = jnp.exp(log_decay.astype(kind))
    fade = jnp.where((jnp.diff(epochs, axis=1, prepend=0) > 0)[..., None], 0, fade)
    start = jnp.zeros((batch, heads, width, v.shape[-1]), kind) if state is None else state.astype(kind)

    def token(state: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, fade = now
        state = fade[..., None, None] * state + k[..., :, None] * v[..., None, :]
        return state, jnp.einsum("bhk,bhkv->bhv", q, state, precision="highest")

    state, out = jax.lax.scan(token, start, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v.astype(kind), fade)))
    return jnp.moveaxis(out, 0, 1), state
