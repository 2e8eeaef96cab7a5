"""What feed-forwards have in common: a formula written over `linear`, so that experts can run it on their own weights.

A feed-forward returns (y, aux). Plain ones have nothing to say beside their output, so aux is ``{}``; a mixture of
experts says how its router fares. ``aux`` maps names to float32 scalars; the decoder takes the mean of each over the
layers that report it. `AUXILIARY_LOSS` is the one an objective adds to its loss, the others are only reported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from jaxlm.core.config import Spec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.ops.dense import dense

AUXILIARY_LOSS = "auxiliary_loss"

Aux = dict[str, jax.Array]
Linear = Callable[[str, jax.Array], jax.Array]


def linear(p: Params, name: str, x: jax.Array) -> jax.Array:
    """x [..., D] times ``p[name]`` [D, *out], plus ``p[name + "_bias"]`` [*out] if there is one, and the low-rank
    x A B of ``p[name + "_down"]`` [D, r] and ``p[name + "_up"]`` [r, *out] if there are such."""
    y = dense(x, p[name])
    if f"{name}_down" in p:
        y = y + dense(dense(x, p[f"{name}_down"]), p[f"{name}_up"])
    bias = p.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(y.dtype)


class FeedForward(Spec):
    """A feed-forward that treats each token alone and alike: `params`, and the formula `apply`."""

    def params(self, dims: Dims) -> Specs:
        raise NotImplementedError

    def apply(self, linear: Linear, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]; ``linear(name, x)`` is x's product with the weight of that name, its bias added."""
        raise NotImplementedError

    def __call__(self, p: Params, x_BLD: jax.Array, ctx: Context) -> tuple[jax.Array, Aux]:
        """[B, L, D] -> [B, L, D], and nothing else to report."""
        return self.apply(functools.partial(linear, p), x_BLD), {}
