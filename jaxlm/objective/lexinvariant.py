"""Lexinvariant training: every row has a token table of its own, drawn anew; what is learned is to read by context.

Paper: Huang et al. 2023, Lexinvariant Language Models. Formula: `jaxlm.ops.drawn_table`. Learned: everything but the
table. Claimed: the loss approaches that of a usual model as the context grows, and substitution ciphers are solved in
context; with a share of the rows, or of the tokens, a regulariser. Shown by: experiments.tokenization (lexinvariance).

Keys are drawn by (seed, step, row of the batch) before the batch is cut into microbatches or over devices. A row is one
text: documents that are packed together have one table. The model's head must be tied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require, slot
from jaxlm.core.types import ModelFn, Params
from jaxlm.ops.drawn_table import row_keys, with_tables

Batch = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Lexinvariant(Spec):
    """Another objective, under drawn tables.

    Attributes:
      share: probability that a row's table is drawn; the others read the learned one.
      kept: tokens that keep their learned vectors.
      inner: the objective.
    """

    paper: ClassVar[str] = "Huang et al. 2023, Lexinvariant Language Models"

    share: float = 1.0
    kept: tuple[int, ...] = ()
    inner: Any = slot("objective", "next_token")

    def check(self) -> None:
        require(0 < self.share <= 1, f"Lexinvariant.share: expected a probability in (0, 1], got {self.share}")
        require(min(self.kept, default=0) >= 0, f"Lexinvariant.kept: expected token ids, got {self.kept}")

    def prepare(self, batch: Batch, rng: jax.Array) -> Batch:
        """What the inner objective prepares, and each row's ``table_keys`` uint32 [B, n] and ``drawn`` boolean [B]."""
        inner, tables, shares = jax.random.split(rng, 3)
        made = self.inner.prepare(batch, inner)
        rows = jnp.arange(jnp.shape(made["tokens"])[0])
        keys, drawn = row_keys(tables, rows), jax.vmap(jax.random.uniform)(row_keys(shares, rows)) < self.share
        return {**made, "table_keys": jax.random.key_data(keys), "drawn": drawn}

    def loss(self, model: ModelFn, params: Params, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The inner loss of a prepared batch under its tables."""
        keys = jax.random.wrap_key_data(batch["table_keys"])
        drawn = None if self.share == 1 else batch["drawn"]
        return self.inner.loss(model, with_tables(params, keys, drawn, self.kept), batch, rng)
