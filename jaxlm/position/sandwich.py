"""Sandwich: what is left of sinusoidal positions when only their products with each other are kept.

    bias_h(i, j) = k_h sum_m cos((i - j) f_m)      f_m = base^(-2m/d)      k_h = H / (8 h), h = 1..H

Learned: nothing. Claimed: falls with the distance like KERPLE's logarithm, so that it extrapolates as ALiBi does and
uses what lies further back (Chi et al. 2023). The paper divides by its compression ratio 8 h / H; a toolkit's version,
much copied, sums distances where cosines belong.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.types import Params, PositionEncoding, Side, TileBias


def _cosine(turns: jax.Array) -> jax.Array:
    """cos(2 pi turns) to 3e-7, as 1 - 2 sin^2 of half the angle.

    A general cosine has to reduce angles of any size; a kernel with so many of them takes minutes to compile.
    """
    half = math.pi * (turns - jnp.floor(turns + 0.5))
    square = half * half
    sine = 1 / math.factorial(11)
    for n in (9, 7, 5, 3, 1):
        sine = 1 / math.factorial(n) - square * sine
    sine = half * sine
    return 1 - 2 * sine * sine


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CosineBias(TileBias):
    """slope * sum of cos(distance * base^(-2m / width)), float32 slopes [H]."""

    trainable: ClassVar[bool] = False

    slopes: jax.Array
    width: int = dataclasses.field(metadata={"static": True})
    base: float = dataclasses.field(metadata={"static": True})

    def numbers(self) -> jax.Array:
        return self.slopes[:, None]

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        distance = jnp.abs(pos_q - pos_k).astype(jnp.float32)
        fall = -2 * math.log2(self.base) / self.width

        def add(m: jax.Array, total: jax.Array) -> jax.Array:
            turns = jnp.exp2(jnp.full(distance.shape, fall * m.astype(jnp.float32))) * distance
            return total + _cosine(turns * (0.5 / math.pi))

        # A loop: unrolled, the cosines of one tile are more code than a kernel compiles in minutes.
        return numbers[0] * jax.lax.fori_loop(0, self.width // 2, add, jnp.zeros(distance.shape, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Sandwich(PositionEncoding):
    """A sum of cosines.

    Attributes:
      width: d, the width of the sinusoids; the paper has 128 whatever the model's.
      base: the longest wavelength over 2 pi.
    """

    paper: ClassVar[str] = "Chi et al. 2023, Dissecting Transformer Length Extrapolation via Receptive Field Analysis"

    width: int = 128
    base: float = 10_000.0

    def check(self) -> None:
        even = self.width > 0 and self.width % 2 == 0
        require(even, f"Sandwich.width: expected a positive even integer, got {self.width}")
        require(self.base > 0, f"Sandwich.base: expected a positive number, got {self.base}")

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias:
        heads = q.shape[2]
        slopes = jnp.asarray(heads / (8 * np.arange(1, heads + 1)), jnp.float32)
        return CosineBias(slopes, self.width, self.base)
