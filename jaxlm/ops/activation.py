"""Activation functions by their usual names."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), exact (Hendrycks and Gimpel 2016). As an erf with its derivative written out; jax's erfc costs more."""
    return x * _normal_cdf(x)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))


@gelu.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    cdf = _normal_cdf(x)
    return x * cdf, dx * (cdf + x * jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5)


def _squared_relu(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x) ** 2


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
    "squared_relu": _squared_relu,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda x: x,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function called ``name`` (``gelu`` is the exact, erf form); `ConfigError` with a suggestion otherwise."""
    return ACTIVATIONS[choose("activation", name, ACTIVATIONS)]
