"""FIRE: a small network of the distance over the query's own position, both on a logarithmic scale.

    bias_h(i, j) = w2_h . relu(w1 psi(|i - j|) / psi(max(i, L)) + b1)        psi(x) = ln(|c| x + 1)

Whatever the length, the network's input stays within 0..1. Learned, in each layer: c, L and the network 1-W-H. The
paper's network ends with an offset, which is left out: it would add the same to all logits of a head. Claimed: better
than T5's bias, ALiBi, KERPLE and rotary at lengths beyond training (Li et al. 2024); it can represent the first three.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import Constant, ParamSpec, Uniform
from jaxlm.core.types import Dims, Params, PositionEncoding, Side, Specs, TileBias


def normalised(c: jax.Array, length: jax.Array, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
    """psi(distance) / psi(max(i, L)), float32; elementwise."""
    near = jnp.log(c * jnp.abs(pos_q - pos_k).astype(jnp.float32) + 1)
    most = jnp.log(c * jnp.maximum(pos_q.astype(jnp.float32), length) + 1)
    return near / jnp.maximum(most, 1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetworkBias(TileBias):
    """The network of `normalised`: float32 w1, b1 [W], w2 [H, W], c and length [].

    It has no form for kernels: with 3 W + 2 numbers a head they would take minutes to compile, and keep as many sums.
    """

    of_heads: ClassVar[tuple[str, ...]] = ("w2",)

    w1: jax.Array
    b1: jax.Array
    w2: jax.Array
    c: jax.Array
    length: jax.Array

    def tile(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        x = normalised(self.c, self.length, pos_q[:, :, None], pos_k[:, None, :])[..., None]
        units = self.w1 * x + self.b1
        units = jnp.where(units > 0, units, 0.0)
        return jnp.einsum("bltw,hw->bhlt", units, self.w2, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Fire(PositionEncoding):
    """Functional interpolation for relative positions.

    Attributes:
      hidden: W, units of the network.
      c: initial value of c.
      length: initial value of L, up to which queries share the scale; learned as a multiple of it.
    """

    paper: ClassVar[str] = "Li et al. 2024, Functional Interpolation for Relative Positions (FIRE)"

    hidden: int = 32
    c: float = 0.1
    length: float = 512.0

    def check(self) -> None:
        require(self.hidden > 0, f"Fire.hidden: expected a positive integer, got {self.hidden}")
        require(self.c > 0 and self.length > 0, f"Fire: expected positive c and length, got {self.c} and {self.length}")

    def params(self, dims: Dims) -> Specs:
        within = lambda fan_in: Uniform(-(fan_in**-0.5), fan_in**-0.5)
        return {
            "w1": ParamSpec((self.hidden,), (None,), within(1), decay=False),
            "b1": ParamSpec((self.hidden,), (None,), within(1), decay=False),
            "w2": ParamSpec((self.hidden, dims.heads), (None, "heads"), within(self.hidden)),
            "c": ParamSpec((), (), Constant(self.c), decay=False),
            "length": ParamSpec((), (), Constant(1.0), decay=False),
        }

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias:
        p = {name: x.astype(jnp.float32) for name, x in p.items()}
        c, length = jnp.abs(p["c"]), jnp.abs(p["length"]) * self.length
        return NetworkBias(p["w1"], p["b1"], p["w2"].T, c, length)
