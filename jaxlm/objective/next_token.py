"""Next-token prediction: -log p(x_{t+1} | x_{<=t}), summed over tokens with the weights the data give them.

The loss is a sum and comes with its weight; whoever accumulates, packs or shards adds both and divides once. A mean of
means would weigh short rows too much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require
from jaxlm.core.types import ModelFn, Params
from jaxlm.objective import auxiliary
from jaxlm.ops.cross_entropy import cross_entropy

Batch = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class NextToken(Spec):
    """Token-weighted cross-entropy.

    Attributes:
      z_loss: factor of the squared log-sum-exp that keeps logits from drifting; PaLM uses 1e-4.
    """

    paper: ClassVar[str] = "Shannon 1948; Bengio et al. 2003, A Neural Probabilistic Language Model"

    z_loss: float = 0.0

    def check(self) -> None:
        require(self.z_loss >= 0, f"NextToken.z_loss: expected a number >= 0, got {self.z_loss}")

    def prepare(self, batch: Batch, rng: jax.Array) -> Batch:
        """The batch as the loss wants it; here unchanged. Objectives that corrupt or cut tokens do it in this place."""
        del rng
        return batch

    def loss(self, model: ModelFn, params: Params, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The summed loss, and ``{name: (sum, weight)}``.

        ``batch`` holds ``tokens``, ``targets`` int32 [B, L], ``weights`` float32 [B, L] and, where there is packing or
        padding, ``segment_ids`` int32 [B, L]; ``positions`` only where they are not the plain ones (drawn at random);
        ``position_ids`` only where encodings look up others.
        With an ``rng`` the model is in training mode, and the loss contains what its layers add to it.
        """
        out = model(
            params,
            batch["tokens"],
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            position_ids=batch.get("position_ids"),
            ordered=True,
            train=rng is not None,
            rng=rng,
            logits=False,
        )
        total, correct = cross_entropy(
            out.hidden, lambda h: model.unembed(params, h), batch["targets"], batch["weights"], z_loss=self.z_loss
        )
        weight = jnp.sum(batch["weights"])
        if rng is not None:
            total = total + auxiliary.loss(out.aux, weight)
        return total, {"loss": (total, weight), "accuracy": (correct, weight), **auxiliary.metrics(out.aux, weight)}
