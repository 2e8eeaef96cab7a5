"""RWKV's token shift: each projection reads a mixture, channel by channel, of a token and the one before it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.core.params import ParamSpec


@dataclasses.dataclass(frozen=True)
class Spread:
    """From low to high over the channels, as a power of their share of the way."""

    low: float
    high: float
    power: float = 1.0

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        share = jnp.arange(spec.shape[0]) / max(1, spec.shape[0] - 1)
        return (self.low + (self.high - self.low) * share**self.power).astype(jnp.float32)


def mixed(mu: jax.Array, x: jax.Array, before: jax.Array) -> jax.Array:
    """mu x_t + (1 - mu) x_{t-1}, for x and what came before each, [B, L, D]; in x's dtype."""
    mu = mu.astype(x.dtype)
    return mu * x + (1 - mu) * before
