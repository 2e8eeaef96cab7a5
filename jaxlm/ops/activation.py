"""Activation functions by their usual names."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from jaxlm.core.errors import choose


def _squared_relu(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x) ** 2


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "squared_relu": _squared_relu,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda x: x,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function called ``name`` (``gelu`` is the exact, erf form); `ConfigError` with a suggestion otherwise."""
    return ACTIVATIONS[choose("activation", name, ACTIVATIONS)]
