"""T5's relative bias: logits get table[bucket(i - j), h], with exact buckets near and logarithmic ones far.

Learned: one table [buckets, heads], shared by all layers. Claimed: simple and good in distribution (Raffel et al.
2020), second best at extrapolation on average (Kazemnejad et al. 2023). Shown by: experiments.length_generalization.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import Normal, ParamSpec
from jaxlm.core.types import Dims, Params, PositionEncoding, Side, Specs, TileBias


def bucket(distance: jax.Array, buckets: int, max_distance: int, bidirectional: bool) -> jax.Array:
    """Bucket of int32 ``distance`` = query position - key position.

    The first half of the buckets (of a direction) holds one distance each; the rest divide the log scale up to
    ``max_distance``, and the last takes everything beyond. Bidirectional: the upper half of all is for keys ahead.
    """
    offset = jnp.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = jnp.where(distance < 0, buckets, 0)
        distance = jnp.abs(distance)
    distance = jnp.maximum(distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BucketBias(TileBias):
    """table[bucket(distance)], float32 [buckets, H]."""

    table: jax.Array
    max_distance: int = dataclasses.field(metadata={"static": True})
    bidirectional: bool = dataclasses.field(metadata={"static": True})

    def numbers(self) -> jax.Array:
        return self.table.astype(jnp.float32).T

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        index = bucket(pos_q - pos_k, len(numbers), self.max_distance, self.bidirectional)
        found = jnp.zeros(index.shape, jnp.float32)
        for i, value in enumerate(numbers):  # a kernel has no gather; one select a bucket
            found = jnp.where(index == i, value, found)
        return found

    def tile(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        distance = pos_q[:, :, None] - pos_k[:, None, :]
        index = bucket(distance, self.table.shape[0], self.max_distance, self.bidirectional)
        return jnp.asarray(self.table, jnp.float32)[index].transpose(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class T5Bias(PositionEncoding):
    """Bucketed relative bias.

    Attributes:
      buckets: number of rows of the table.
      max_distance: distances from here on share the last bucket.
      bidirectional: buckets for keys ahead as well (encoders).
    """

    paper: ClassVar[str] = "Raffel et al. 2020, Exploring the Limits of Transfer Learning (T5)"
    scope: ClassVar[str] = "model"

    buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False

    def check(self) -> None:
        least = 4 if self.bidirectional else 2
        require(self.buckets >= least, f"T5Bias.buckets: expected at least {least}, got {self.buckets}")
        require(
            self.max_distance > self.buckets // 2,
            f"T5Bias.max_distance: expected more than {self.buckets // 2}, got {self.max_distance}",
        )

    def params(self, dims: Dims) -> Specs:
        return {"table": ParamSpec((self.buckets, dims.heads), (None, "heads"), Normal(dims.width**-0.5))}

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias:
        return BucketBias(p["table"], self.max_distance, self.bidirectional)
