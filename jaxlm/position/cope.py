"""CoPE, contextual position encoding: keys are counted by what they are, not by where they stand.

A key's position, seen from a query, is the number of open gates from it up to the query, p_ij = sum_{t=j..i}
sigmoid(q_i . k_t), and adds q_i . e[p_ij] to the logit, e interpolated between whole numbers. Learned: e, for all heads
of a layer. Claimed: counts words and sentences where token positions cannot, and generalises in counting tasks
(Golovneva et al. 2024). Gates are of the unscaled product, as in the paper. Shown by: experiments.context_extension.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Dims, Params, PositionEncoding, RowBias, Side, Specs


def contextual_positions(products: jax.Array, seen: jax.Array) -> jax.Array:
    """p_ij float32 [..., l, t] of products q k^T and their visibility: open gates among the visible keys from j on."""
    gates = jnp.where(seen, jax.nn.sigmoid(products), 0.0)
    return jnp.flip(jnp.cumsum(jnp.flip(gates, -1), -1), -1)


def _rule(
    q: jax.Array, k: jax.Array, table: jax.Array, pos_q: jax.Array, pos_k: jax.Array, seen: jax.Array
) -> jax.Array:
    batch, length, heads, width = q.shape
    groups, last = k.shape[2], table.shape[1] - 1
    q = q.astype(jnp.float32)
    grouped = q.reshape(batch, length, groups, heads // groups, width)
    products = jnp.einsum("blgrk,btgk->bgrlt", grouped, k.astype(jnp.float32)).reshape(batch, heads, length, -1)
    position = jnp.minimum(contextual_positions(products, seen), last)
    at_whole = jnp.einsum("blhk,hpk->bhlp", q, table)  # the logit of each whole position
    below = jnp.floor(position).astype(jnp.int32)
    share = position - below
    read = lambda at: jnp.take_along_axis(at_whole, at, -1)
    return (1 - share) * read(below) + share * read(jnp.minimum(below + 1, last))


@dataclasses.dataclass(frozen=True)
class CoPE(PositionEncoding):
    """Contextual positions.

    Attributes:
      positions: rows of the table; further counts read the last one.
    """

    paper: ClassVar[str] = "Golovneva et al. 2024, Contextual Position Encoding: Learning to Count What's Important"

    positions: int = 64

    def check(self) -> None:
        require(self.positions > 1, f"CoPE.positions: expected at least 2, got {self.positions}")

    def params(self, dims: Dims) -> Specs:
        return {"table": ParamSpec((self.positions, dims.head_dim), (None, None), zeros, decay=False)}

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> RowBias:
        table: Any = jnp.broadcast_to(p["table"].astype(jnp.float32), (q.shape[2], *p["table"].shape))
        return RowBias(q, k, table, _rule)
