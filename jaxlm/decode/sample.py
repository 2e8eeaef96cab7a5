"""Choosing the next token: temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020, nucleus sampling).

A sample is ``argmax(logits / temperature + Gumbel noise)``, an exact draw from the softmax (Gumbel 1954). The noise of
a row is drawn from ``fold_in(fold_in(key, row), step)`` alone, so what else is in the batch cannot change it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gumbel(key: jax.Array, rows: int, step: jax.Array | int, size: int) -> jax.Array:
    """The noise of one step, float32 [rows, size]; row b's depends on (key, b, step) only."""

    def one(row: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, row), step), (size,))

    return jax.vmap(one)(jnp.arange(rows))


def keep_top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """The logits with all but each row's ``k`` largest at -inf; those tied with the k-th stay."""
    return jnp.where(logits_BV >= jax.lax.top_k(logits_BV, k)[0][:, -1:], logits_BV, -jnp.inf)


def keep_top_p(logits_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """The logits with all but the nucleus at -inf: the fewest likeliest tokens whose probability reaches ``p``."""
    ranked = jnp.sort(logits_BV, axis=-1, descending=True)
    chance = jax.nn.softmax(ranked, axis=-1)
    inside = jnp.cumsum(chance, axis=-1) - chance < p  # what the likelier ones amount to; so the first is always inside
    least = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least, logits_BV, -jnp.inf)
