"""Embedding tables that are drawn, one for each row of a batch, in place of the learned one.

Paper: Huang et al. 2023, Lexinvariant Language Models. A row's table is N(0, 1 / D) in each entry, of a key; shared
with the output layer, logit = h . e_v, so that a model knows of a symbol only what the row tells of it. Parameters
whose ``embed/table`` is [B, V, D] are parameters like others: all functions of `jaxlm.model.decoder` take them, and so
does generation, where the keys are thereby part of the call:

    keys = row_keys(key, jnp.arange(len(prompt)))
    jaxlm.generate(model, with_tables(params, keys), prompt)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxlm.core.config import require
from jaxlm.core.types import Params


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """A key for each row's id, [B]."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def draw_tables(keys: jax.Array, vocabulary: int, width: int) -> jax.Array:
    """float32 [B, V, D] of keys [B]: a row's table depends on its key alone."""
    return jax.vmap(lambda key: jax.random.normal(key, (vocabulary, width)))(keys) * width**-0.5


def with_tables(
    params: Params, keys: jax.Array, drawn: ArrayLike | None = None, kept: tuple[int, ...] = ()
) -> dict[str, Any]:
    """``params`` with a table for each row, ``embed/table`` [B, V, D]; gradients reach the learned one where it stays.

    Args:
      params: of a model with a tied head.
      keys: [B].
      drawn: booleans [B], the rows that get a drawn table; None for all.
      kept: tokens that keep their learned vectors in every row.

    Raises `ConfigError` for tokens outside the vocabulary, and for parameters that have tables already.
    """
    table = params["embed"]["table"]
    require(table.ndim == 2, f"with_tables: the parameters have a table for each of {len(table)} rows already")
    size, width = table.shape
    odd = [token for token in kept if not 0 <= token < size]
    require(not odd, f"kept: token {odd[:1]} is not one of 0..{size - 1}")
    anew = jnp.ones(size, bool).at[jnp.asarray(kept, jnp.int32)].set(False)[None, :, None]
    if drawn is not None:
        anew = anew & jnp.asarray(drawn, bool)[:, None, None]
    tables = jnp.where(anew, draw_tables(keys, size, width).astype(table.dtype), table)
    return {**params, "embed": {**params["embed"], "table": tables}}
