"""Choosing the next token: the likeliest, or an exact draw from the softmax.

A sample is ``argmax(logits + Gumbel noise)`` (Gumbel 1954). The noise of a row is drawn from
``fold_in(fold_in(key, row), step)`` alone, where ``row`` is an id that the caller gives it, so that neither the rest of
the batch nor the row's place in it can change a text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gumbel(key: jax.Array, rows_B: jax.Array, step: jax.Array | int, size: int) -> jax.Array:
    """The noise of one step, float32 [B, size]; that of a row depends on (key, its id, step) only."""

    def one(row: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, row), step), (size,))

    return jax.vmap(one)(rows_B)


def choose(logits_BV: jax.Array, key: jax.Array | None, rows_B: jax.Array, step: jax.Array | int) -> jax.Array:
    """The next token of each row, int32 [B]: the likeliest if ``key`` is None, otherwise a sample."""
    if key is not None:
        logits_BV = logits_BV + gumbel(key, rows_B, step, logits_BV.shape[-1])
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
