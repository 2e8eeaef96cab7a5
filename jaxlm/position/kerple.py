"""KERPLE: biases that fall with the logarithm or a power of the distance, at a rate that each head learns.

    log      -p ln(1 + a r)      p, a >= 0.01
    power    -a r^p              a >= 0.01, 0.01 <= p <= 2          r = |i - j|

Learned: p and a of each head, in each layer. Claimed: conditionally positive definite kernels, so that a softmax of
them extrapolates; the logarithm best (Chi et al. 2022). A number beyond its bound counts as the bound and keeps its
gradient, as where stored values are clamped.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec, Uniform
from jaxlm.core.types import Dims, Params, PositionEncoding, Side, Specs, TileBias

LEAST, STEEPEST = 0.01, 2.0


def _within(x: jax.Array, high: float | None = None) -> jax.Array:
    """x in its bounds, with the gradient of x."""
    x = x.astype(jnp.float32)
    return x + jax.lax.stop_gradient(jnp.clip(x, LEAST, high) - x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogBias(TileBias):
    """-p ln(1 + a |distance|), float32 [H] each."""

    p: jax.Array
    a: jax.Array

    def numbers(self) -> jax.Array:
        return jnp.stack((self.p, self.a), axis=1)

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return -numbers[0] * jnp.log(1 + numbers[1] * jnp.abs(pos_q - pos_k).astype(jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PowerBias(TileBias):
    """-a |distance|^p, float32 [H] each."""

    p: jax.Array
    a: jax.Array

    def numbers(self) -> jax.Array:
        return jnp.stack((self.p, self.a), axis=1)

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        distance = jnp.abs(pos_q - pos_k)
        # The logarithm of 0 would have no gradient, not even one that is then not used.
        power = jnp.exp(numbers[0] * jnp.log(jnp.maximum(distance, 1).astype(jnp.float32)))
        return jnp.where(distance > 0, -numbers[1] * power, 0.0)


@dataclasses.dataclass(frozen=True)
class Kerple(PositionEncoding):
    """Kernelized relative positions.

    Attributes:
      kernel: ``"log"`` or ``"power"``.
    """

    paper: ClassVar[str] = "Chi et al. 2022, KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation"

    kernel: str = "log"

    def check(self) -> None:
        choose("Kerple.kernel", self.kernel, ("log", "power"))

    def params(self, dims: Dims) -> Specs:
        return {
            name: ParamSpec((dims.heads,), ("heads",), Uniform(0.0, high), decay=False)
            for name, high in (("p", 2.0), ("a", 1.0))
        }

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias:
        if self.kernel == "log":
            return LogBias(_within(p["p"]), _within(p["a"]))
        return PowerBias(_within(p["p"], STEEPEST), _within(p["a"]))
