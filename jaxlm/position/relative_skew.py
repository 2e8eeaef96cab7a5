"""Relative position representations as in Music Transformer: the logit of (i, j) gets scale q_i . E_h[i - j].

Learned: a vector per head and distance up to ``distances``; further ones read the last. Claimed: structure over long
spans of music; in memory O(L D) where Shaw et al. (2018) take O(L^2 D) (Huang et al. 2019). The paper has q E^T
"skewed" so that rows line up by distance; reading it by distance is the same, needs no order of positions, and goes
block by block. The term is inside the factor 1 / sqrt(K), as there. Shown by: experiments.context_extension.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import Normal, ParamSpec
from jaxlm.core.types import Dims, Params, PositionEncoding, RowBias, Side, Specs


def _rule(
    q: jax.Array, keys: tuple[()], table: jax.Array, pos_q: jax.Array, pos_k: jax.Array, seen: jax.Array
) -> jax.Array:
    by_distance = jnp.einsum("blhk,hrk->bhlr", q.astype(jnp.float32), table)
    distance = jnp.clip(pos_q[:, None, :, None] - pos_k[:, None, None, :], 0, table.shape[1] - 1)
    distance = jnp.broadcast_to(distance, (q.shape[0], q.shape[2], *distance.shape[2:]))
    return jnp.take_along_axis(by_distance, distance, -1) * q.shape[-1] ** -0.5


@dataclasses.dataclass(frozen=True)
class RelativeSkew(PositionEncoding):
    """A learned vector for each distance, that queries are multiplied with.

    Attributes:
      distances: rows of the table: distances 0 .. distances - 1. A key ahead of its query reads distance 0.
    """

    paper: ClassVar[str] = "Huang et al. 2019, Music Transformer: Generating Music with Long-Term Structure"

    distances: int = 512

    def check(self) -> None:
        require(self.distances > 0, f"RelativeSkew.distances: expected a positive integer, got {self.distances}")

    def params(self, dims: Dims) -> Specs:
        shape = (dims.heads, self.distances, dims.head_dim)
        return {"table": ParamSpec(shape, ("heads", None, None), Normal(dims.head_dim**-0.5), decay=False)}

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> RowBias:
        return RowBias(q, (), p["table"].astype(jnp.float32), _rule)
