"""Masked language modelling: some tokens are hidden, and only these are predicted, from both sides.

Paper: Devlin et al. 2018 (BERT). Each real token that is not special is chosen with probability ``rate``, by itself. Of
the chosen, ``masked`` become the mask, ``random`` any token of the vocabulary, and the others stay; all of them count:

    loss = sum over chosen tokens of -log p(x_i | what is left of x)

Choices are made inside the compiled step, with noise by (seed, step, row of the batch), so every epoch hides other
tokens; they are made for each token alone, so packing changes none of their chances. The model must look ahead
(``mask="bidirectional"``). The published settings are `BERT` (also RoBERTa's, at other ids) and `MODERNBERT`: 30 %,
with the same three ways (``SequencePacker.mlm_masking`` of its authors' code).
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
class MaskedLanguageModel(Spec):
    """Token-weighted cross-entropy of hidden tokens. The defaults are BERT's (uncased).

    Attributes:
      rate: probability that a token is chosen.
      masked: share of the chosen that become ``mask``.
      random: share of the chosen that become a token drawn uniformly.
      mask: the id of the mask.
      vocabulary: tokens are drawn from 0..vocabulary - 1.
      special: ids that are never chosen.
    """

    paper: ClassVar[str] = "Devlin et al. 2018, BERT: Pre-training of Deep Bidirectional Transformers"

    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    mask: int = 103
    vocabulary: int = 30522
    special: tuple[int, ...] = (0, 100, 101, 102, 103)

    def check(self) -> None:
        name = "MaskedLanguageModel"
        require(0 < self.rate <= 1, f"{name}.rate: expected a probability in (0, 1], got {self.rate}")
        for field in ("masked", "random"):
            share = getattr(self, field)
            require(0 <= share <= 1, f"{name}.{field}: expected a share in [0, 1], got {share}")
        both = self.masked + self.random
        require(both <= 1 + 1e-9, f"{name}: expected masked + random <= 1, got {self.masked} + {self.random}")
        require(self.vocabulary > 0, f"{name}.vocabulary: expected a positive integer, got {self.vocabulary}")
        require(self.mask >= 0, f"{name}.mask: expected a token id, got {self.mask}")

    def prepare(self, batch: Batch, rng: jax.Array) -> Batch:
        """The batch [B, L]: ``tokens`` with some hidden, ``targets`` all of them, ``weights`` 1 where one was chosen.

        Padding (segment 0) is never chosen, nor is anything in a row whose weights are all 0 (a batch that was filled
        up); the weights say no more, since they are of the tokens that come next.
        """
        tokens = jnp.asarray(batch["tokens"])
        rows, length = tokens.shape
        open_ = jnp.ones(tokens.shape, bool)
        if "segment_ids" in batch:
            open_ &= jnp.asarray(batch["segment_ids"]) > 0
        if "weights" in batch:
            open_ &= (jnp.asarray(batch["weights"]) > 0).any(1, keepdims=True)
        if self.special:
            open_ &= ~(tokens[..., None] == jnp.asarray(self.special, tokens.dtype)).any(-1)

        def draw(row: jax.Array) -> tuple[jax.Array, jax.Array]:
            first, second = jax.random.split(jax.random.fold_in(rng, row))
            return jax.random.uniform(first, (2, length)), jax.random.randint(second, (length,), 0, self.vocabulary)

        noise, others = jax.vmap(draw)(jnp.arange(rows))
        chosen, way = open_ & (noise[:, 0] < self.rate), noise[:, 1]
        hidden = jnp.where(way < self.masked, self.mask, jnp.where(way < self.masked + self.random, others, tokens))
        made = {"tokens": jnp.where(chosen, hidden, tokens).astype(tokens.dtype), "targets": tokens}
        return {**batch, **made, "weights": chosen.astype(jnp.float32)}

    def loss(self, model: ModelFn, params: Params, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The summed loss of a prepared batch, and ``{name: (sum, weight)}``; weights count chosen tokens.

        With an ``rng`` the model is in training mode. Raises `ConfigError` (when traced) if nothing in the model looks
        ahead, or its vocabulary is smaller than the objective's.
        """
        require(
            not getattr(model, "causal", False),
            "MaskedLanguageModel predicts from both sides, and no mixer of the model looks ahead",
        )
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
        unembed = lambda h: model.unembed(params, h)
        known, needed = jax.eval_shape(unembed, out.hidden).shape[-1], max(self.vocabulary, self.mask + 1)
        require(needed <= known, f"MaskedLanguageModel writes ids up to {needed - 1}; the model knows {known} tokens")
        total, correct = cross_entropy(out.hidden, unembed, batch["targets"], batch["weights"])
        weight = jnp.sum(batch["weights"])
        if rng is not None:
            total = total + auxiliary.loss(out.aux, weight)
        return total, {"loss": (total, weight), "accuracy": (correct, weight), **auxiliary.metrics(out.aux, weight)}


BERT = MaskedLanguageModel()
MODERNBERT = MaskedLanguageModel(rate=0.3, mask=50284, vocabulary=50368, special=tuple(range(50280, 50285)))
