"""Training a hypernetwork of embeddings: the model's loss under a sampled tokenizer, and faithfulness on shared tokens.

Paper: Minixhofer et al. 2024, Zero-Shot Tokenizer Transfer. Per batch, with a tokenizer drawn for it:

    loss = -sum log p(x_{t+1} | x_{<=t}; H(tokenizer)) + lexical_weight * weight * mean over shared tokens t of
           |H_in(t) - E_in[t]| + |H_out(t) - E_out[t]|            (Euclidean; tied models have one table)

The model's own parameters are constants. Claimed: the second term is what keeps predictions where the frozen layers
expect them; its weight is 0.5 in the released runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require
from jaxlm.core.types import Params
from jaxlm.ops.cross_entropy import cross_entropy

Batch = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class TokenizerTransfer(Spec):
    """The objective of a `jaxlm.model.embedding_hypernetwork.TransferModel`.

    Attributes:
      lexical_weight: factor of the distance on shared tokens.
    """

    paper: ClassVar[str] = "Minixhofer et al. 2024, Zero-Shot Tokenizer Transfer"

    lexical_weight: float = 0.5

    def check(self) -> None:
        require(
            self.lexical_weight >= 0,
            f"TokenizerTransfer.lexical_weight: expected a number >= 0, got {self.lexical_weight}",
        )

    def prepare(self, batch: Batch, rng: jax.Array) -> Batch:
        """The batch unchanged; `jaxlm.data.tokenizer_transfer` makes it."""
        del rng
        return batch

    def loss(self, model: Any, params: Params, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The summed loss, and ``{name: (sum, weight)}``; ``bits_per_byte`` is over the bytes of the targets.

        Args:
          model: with `predict`, `own`, `with_tables` and the calls of a `ModelFn`.
          params: ``{"base", "hypernetwork"}``; no gradient reaches ``base``.
          batch: ``tokens``, ``targets`` int32, ``weights`` float32 and ``segment_ids`` int32 [B, L] as for next-token
            prediction, ``bytes`` float32 [B, L] of each target; of the N tokens of its tokenizer ``pieces``,
            ``piece_mask`` [N, P], ``copied`` [N], and ``shared`` int32 [N], the original token or -1.
        """
        params = {**params, "base": jax.lax.stop_gradient(params["base"])}
        tables = model.predict(params, batch)
        own = model.with_tables(params, tables)
        out = model(
            own,
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            ordered=True,
            train=rng is not None,
            rng=rng,
            logits=False,
        )
        total, correct = cross_entropy(out.hidden, lambda h: model.unembed(own, h), batch["targets"], batch["weights"])
        weight = jnp.sum(batch["weights"])
        bits = total / math.log(2), jnp.sum(batch["bytes"] * batch["weights"])
        shared = batch["shared"] >= 0
        count = jnp.maximum(shared.sum(), 1)
        lexical = jnp.float32(0)
        for name, theirs in model.own(params, jnp.maximum(batch["shared"], 0)).items():
            square = jnp.square(tables[name] - theirs).sum(1 if name == "table" else 0)
            # sqrt has no gradient at 0, where an untrained network is
            apart = shared & (square > 0)
            lexical += jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0).sum() / count
        metrics = {"loss": (total, weight), "accuracy": (correct, weight), "bits_per_byte": bits}
        return total + self.lexical_weight * weight * lexical, {**metrics, "lexical": (weight * lexical, weight)}
