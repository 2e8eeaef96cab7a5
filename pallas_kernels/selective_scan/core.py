"""The contract of a back end, and the mathematics of one token.

    h_t = exp(delta_t a) h_{t-1} + delta_t b_t u_t        y_t = c_t . h_t

for every channel, with N numbers of state each (Gu and Dao 2023, Mamba, section 3). delta >= 0 and a <= 0, so that no
exponent is positive. The states of a chunk live in fast memory only: the backward pass makes them again from the state
before the chunk, the one thing that the forward pass keeps.

A back end is a module with four functions:

    supports(request: Request) -> str | None                   why it cannot serve, or None
    sizes(request: Request) -> Sizes                           to what the call is padded
    forward(arrays, state, sizes, interpret, keep) -> (y, final, starts)
    backward(arrays, starts, sizes, interpret, dy, dfinal) -> (gradients, dstate)

with ``arrays`` padded `Arrays`, states float32 [B, C, N]; ``starts`` the states before each chunk in a layout of the
back end's own, or None unless ``keep``; ``gradients`` the first five of `Arrays`, all float32, those of ``a`` still of
each row of the batch, [B, C, N].

The functions on a token take arrays that broadcast to a tile of states, [N, C] or [C, N]; ``axis`` is that of N.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Request:
    """A call as back ends judge it. ``dtypes`` are those of u, delta, b and c; ``width`` is the channels of a group."""

    platform: str
    dtypes: tuple[str, ...]
    width: int
    states: int
    interpret: bool = False


class Sizes(NamedTuple):
    """Tokens of a chunk, channels of a block, which pad lengths and groups to multiples, and the padded N."""

    tokens: int
    channels: int
    states: int


class Arrays(NamedTuple):
    """Of a call: u, delta [B, L, C]; a float32 [C, N]; b, c [B, G, L, N], of groups of C / G channels; stays float32
    [B, L], 0 where a document begins and the state is forgotten, else 1, or None for all 1."""

    u: jax.Array
    delta: jax.Array
    a: jax.Array
    b: jax.Array
    c: jax.Array
    stays: jax.Array | None


def fade(delta: jax.Array, a: jax.Array, stays: jax.Array | None) -> jax.Array:
    """The factor of a state."""
    return jnp.exp(delta * a) if stays is None else jnp.exp(delta * a) * stays


def forward(
    state: jax.Array,
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    stays: jax.Array | None,
) -> jax.Array:
    """The next state; its output is the sum over states of c times it."""
    return fade(delta, a, stays) * state + (delta * u) * b


class Gradients(NamedTuple):
    """Of a token: of u and delta; of a, and of b and c before the sum over channels; and of the state before it."""

    u: jax.Array
    delta: jax.Array
    a: jax.Array
    b: jax.Array
    c: jax.Array
    state: jax.Array


def backward(
    before: jax.Array,
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    stays: jax.Array | None,
    dy: jax.Array,
    dstate: jax.Array,
    axis: int,
) -> Gradients:
    """From the state before the token, the gradient of its output and what that of its state is without it."""
    faded = fade(delta, a, stays)
    moved, added = faded * before, delta * u
    dstate = dstate + c * dy
    dadded = (dstate * b).sum(axis, keepdims=True)
    dpower = dstate * moved  # d loss / d (delta a)
    return Gradients(
        u=delta * dadded,
        delta=u * dadded + (dpower * a).sum(axis, keepdims=True),
        a=dpower * delta,
        b=dstate * added,
        c=(moved + added * b) * dy,
        state=dstate * faded,
    )
