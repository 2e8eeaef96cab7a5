"""Randomized positions: train on a random increasing subset of 0..max_position-1 in place of 0..L-1.

Every position up to ``max_position`` is then seen in training, whatever the training length, and only the order of
positions carries meaning. Wraps any encoding. Learned: what the inner one learns. Claimed: large gains in length
generalization (Ruoss et al. 2023; as there, positions are drawn at test time too). Shown by:
experiments.length_generalization.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.position.base import Wrapper


@dataclasses.dataclass(frozen=True)
class Randomized(Wrapper):
    """A wrapper that draws positions for another encoding.

    Attributes:
      inner: the encoding that receives the drawn positions.
      max_position: positions are drawn from 0..max_position-1; no row may be longer.
    """

    paper: ClassVar[str] = "Ruoss et al. 2023, Randomized Positional Encodings Boost Length Generalization"

    max_position: int = 2048

    def check(self) -> None:
        limit = self.inner.max_positions()
        require(self.max_position > 0, f"Randomized.max_position: expected a positive integer, got {self.max_position}")
        require(
            limit is None or self.max_position <= limit,
            f"Randomized.max_position {self.max_position} is beyond the inner table of {limit}",
        )

    @property
    def says_where(self) -> bool:
        return self.inner.says_where

    def draw(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """For a row with n = max(position) + 1: a sorted uniform n-subset of 0..max_position-1, read at the positions.

        Segments of a packed row share the row's draw. A row of id r draws from ``fold_in(key, r)``. For positions from
        max_position on there is nothing left to draw: they read max_position, which no model accepts.
        """

        def row(key: jax.Array, plain: jax.Array) -> jax.Array:
            order = jnp.argsort(jax.random.uniform(key, (self.max_position,)))
            kept = jnp.arange(self.max_position) <= plain.max()
            chosen = jnp.sort(jnp.where(kept, order, self.max_position))
            return chosen.at[plain].get(mode="fill", fill_value=self.max_position).astype(jnp.int32)

        keys = jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(positions.shape[0]) if rows is None else rows)
        return jax.vmap(row)(keys, positions)

    def draw_training(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        return self.draw(key, positions, rows)

    def max_positions(self) -> int:
        return self.max_position
