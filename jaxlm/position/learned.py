"""Learned absolute positions: x_i += table[i] (Gehring et al. 2017; GPT-2).

Learned: the table, once in the model. Claimed: as good as sinusoids in distribution; cannot represent a position beyond
its table, so asking for one is an error. Shown by: experiments.train_lm (in distribution only). OPT's table begins with
two rows that no position reads, which ``offset`` counts.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import Normal, ParamSpec
from jaxlm.core.types import Dims, Params, PositionEncoding, Specs


@dataclasses.dataclass(frozen=True)
class Learned(PositionEncoding):
    """A table of vectors added to the token embeddings.

    Attributes:
      size: number of positions.
      std: of the normal initial values.
      offset: rows before that of position 0 (OPT: 2).
    """

    paper: ClassVar[str] = "Gehring et al. 2017, Convolutional Sequence to Sequence Learning"
    scope: ClassVar[str] = "model"

    size: int = 1024
    std: float = 0.02
    offset: int = 0

    def check(self) -> None:
        require(self.size > 0, f"Learned.size: expected a positive integer, got {self.size}")
        require(self.offset >= 0, f"Learned.offset: expected an integer >= 0, got {self.offset}")

    def params(self, dims: Dims) -> Specs:
        return {"table": ParamSpec((self.size + self.offset, dims.width), (None, "embed"), Normal(self.std))}

    def max_positions(self) -> int:
        return self.size

    def embed(self, p: Params, positions: jax.Array, width: int) -> jax.Array:
        """Rows of the table; a traced position outside it reads NaN rather than a neighbour's row."""
        index = jnp.where(positions >= 0, positions + self.offset, -1)
        rows = p["table"].at[index].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(jnp.float32)
