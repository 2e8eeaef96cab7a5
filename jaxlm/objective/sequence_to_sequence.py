"""Sequence to sequence: another objective on targets, by a model that reads a source first (teacher forcing).

Paper: Sutskever et al. 2014, Sequence to Sequence Learning with Neural Networks. Formula: with the default inner
objective -log p(y_{t+1} | y_{<=t}, x), summed over tokens with the weights the data give them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from jaxlm.core.config import Spec, slot
from jaxlm.core.types import ModelFn, Params

Batch = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A model that has been given its source: the function of target tokens that the inner objective asks for."""

    model: Any
    given: Mapping[str, Any]

    def __call__(self, params: Params, tokens: jax.Array, **options: Any) -> Any:
        return self.model(params, tokens, **self.given, **options)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        return self.model.unembed(params, hidden)


@dataclasses.dataclass(frozen=True)
class SequenceToSequence(Spec):
    """The loss of another objective on the target.

    Attributes:
      inner: that objective.
    """

    paper: ClassVar[str] = "Sutskever et al. 2014, Sequence to Sequence Learning with Neural Networks"

    inner: Any = slot("objective", "next_token")

    def prepare(self, batch: Batch, rng: jax.Array) -> Batch:
        """The batch of the inner objective, beside its source."""
        return {**batch, **self.inner.prepare(batch, rng)}

    def loss(self, model: ModelFn, params: Params, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The summed loss, and ``{name: (sum, weight)}``.

        ``batch`` holds, beside what the inner objective wants of the target (`jaxlm.data.pairs`; the first of its
        tokens is the model's start), ``source`` int32 [B, S] and, where there is padding, ``source_segments`` [B, S];
        ``hard_rows`` boolean [B], if it is there, is handed to the encoder (`jaxlm.model.encode`).
        """
        given = {"source": batch["source"], "source_segments": batch.get("source_segments")}
        if "hard_rows" in batch:
            given["hard_rows"] = batch["hard_rows"]
        return self.inner.loss(_Reading(model, given), params, batch, rng)
