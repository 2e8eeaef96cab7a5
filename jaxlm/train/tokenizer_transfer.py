"""Training the hypernetwork of `jaxlm.model.embedding_hypernetwork`: a whole run, and its step.

    tables = Transfer()(model.spec, params, old_tokenizer, new_tokenizer, texts)
    params = put_rows(params, tables, ids)       # of a model whose vocabulary was exchanged already

or, by hand,

    trainer = TransferTrainer(TransferModel(model.spec, EmbeddingHypernetwork()), TokenizerTransfer(), Optimizer(), 600)
    state = trainer.init(jax.random.key(0))
    step = jax.jit(trainer.step, donate_argnums=0)
    for batch in batches:                        # jaxlm.data.tokenizer_transfer.transfer_batch
        state, metrics = step(state, params, batch)

In the step the model's parameters are an argument beside the state: they have no gradient, no moments, and are not
copied.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from jaxlm.core.config import Spec, require
from jaxlm.core.params import initialize
from jaxlm.core.types import Params, Specs
from jaxlm.data.tokenizer_transfer import snippets, spelling, transfer_batch
from jaxlm.model.embedding_hypernetwork import EmbeddingHypernetwork, Tables, TransferModel
from jaxlm.model.spec import ModelSpec
from jaxlm.objective.tokenizer_transfer import TokenizerTransfer
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.sampled_unigram import sample_unigram
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Transfer(Spec):
    """A run: a network is trained for a model and its tokenizer, on texts under tokenizers drawn at random, and then
    predicts the embeddings of another tokenizer, which it has not met.

    Attributes:
      network: that is trained.
      steps: of its training.
      rate: the highest learning rate.
      batch_size: texts a step.
      text_bytes, length: the most bytes and tokens of a text.
      drawn: least and most ids of a drawn tokenizer.
      fresh_every: steps for which a drawn tokenizer is kept.
    """

    network: EmbeddingHypernetwork = EmbeddingHypernetwork()
    steps: int = 600
    rate: float = 1e-3
    batch_size: int = 16
    text_bytes: int = 256
    length: int = 64
    drawn: tuple[int, int] = (512, 4096)
    fresh_every: int = 5

    def check(self) -> None:
        for name in ("steps", "rate", "batch_size", "text_bytes", "length", "fresh_every"):
            value = getattr(self, name)
            require(value > 0, f"Transfer.{name}: expected a positive number, got {value}")
        least, most = self.drawn
        require(300 <= least <= most, f"Transfer.drawn: expected 300 <= least <= most, got {self.drawn}")

    def __call__(
        self,
        spec: ModelSpec,
        params: Params,
        source: Tokenizer,
        target: Tokenizer,
        texts: Sequence[bytes],
        *,
        seed: int = 0,
        report: Callable[[int, Any], None] | None = None,
    ) -> Tables:
        """Embeddings of ``target``'s tokens, float32, as `EmbeddingHypernetwork.predict` gives them.

        Args: of `train`, and ``target``, the new tokenizer; nothing is trained with it.

        Raises `ConfigError` for texts with nothing in them.
        """
        trained = self.train(spec, params, source, texts, seed=seed, report=report)
        spelt = spelling(source, target, max_pieces=self.network.max_pieces)
        model = TransferModel(spec, self.network)
        return jax.jit(model.predict)({"base": params, "hypernetwork": trained}, spelt)

    def train(
        self,
        spec: ModelSpec,
        params: Params,
        source: Tokenizer,
        texts: Sequence[bytes],
        *,
        seed: int = 0,
        report: Callable[[int, Any], None] | None = None,
    ) -> Params:
        """The network's parameters.

        Args:
          spec, params: the model, which stays as it is.
          source: its tokenizer.
          texts: to train on.
          seed: of initial values, texts and drawn tokenizers.
          report: told after each step that one more is done, and its metrics.

        Raises `ConfigError` for texts with nothing in them.
        """
        require(any(texts), "tokenizer transfer: expected texts to train on")
        model = TransferModel(spec, self.network)
        schedule = Schedule("cosine", self.rate, warmup=0.05, final_fraction=0.05)
        trainer = TransferTrainer(model, TokenizerTransfer(), Optimizer(schedule=schedule), self.steps)
        state, step = trainer.init(jax.random.key(seed)), jax.jit(trainer.step, donate_argnums=0)
        draws, drawn, pieces = np.random.default_rng(seed), source, self.network.max_pieces
        for number in range(self.steps):
            if number % self.fresh_every == 0:
                size = round(float(np.exp(draws.uniform(*np.log(self.drawn)))))
                drawn = sample_unigram(snippets(texts, draws, 64, 1024), size, draws)
            few = snippets(texts, draws, self.batch_size, self.text_bytes)
            batch = transfer_batch(source, drawn, few, self.length, rows=self.drawn[1], max_pieces=pieces)
            state, metrics = step(state, params, batch)
            if report is not None:
                report(1, {**metrics, "tokens": batch["weights"].sum()})
        return state.params


def put_rows(params: Params, tables: Tables, ids: NDArray) -> dict[str, Any]:
    """Parameters of a model with the predicted rows of token ids [N], in their own dtypes; biases stay."""
    table, head = params["embed"]["table"], params.get("head", {})
    out = {**params, "embed": {**params["embed"], "table": table.at[ids].set(tables["table"][ids].astype(table.dtype))}}
    if "kernel" in tables:
        kernel = head["kernel"]
        rows = tables["kernel"][:, ids].astype(kernel.dtype)
        out["head"] = {**head, "kernel": kernel.at[:, ids].set(rows)}
    return out


class TransferState(NamedTuple):
    """What training continues from.

    Attributes:
      step: int32 scalar, steps done.
      params: of the hypernetwork.
      optimizer: `jaxlm.train.optimizer.OptimizerState`.
    """

    step: Any
    params: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True, eq=False)
class TransferTrainer:
    """The pure functions of a run.

    Attributes:
      model: the frozen model and the network.
      objective: `jaxlm.objective.tokenizer_transfer.TokenizerTransfer`.
      optimizer: of the network's parameters, by their paths without ``hypernetwork/``.
      total_steps: of the run, for the schedule.
    """

    model: TransferModel
    objective: Any
    optimizer: Optimizer
    total_steps: int

    @functools.cached_property
    def specs(self) -> Specs:
        return self.model.hypernetwork.params(self.model.base)

    @functools.cached_property
    def _update(self) -> optax.GradientTransformation:
        return self.optimizer.build(self.specs, self.total_steps)

    def init(self, key: jax.Array) -> TransferState:
        """The state before the first step."""
        params = initialize(self.specs, key)
        return TransferState(jnp.zeros((), jnp.int32), params, self._update.init(params))

    def step(
        self, state: TransferState, base: Params, batch: Mapping[str, Any]
    ) -> tuple[TransferState, dict[str, jax.Array]]:
        """One update. Returns the new state and scalars: the objective's means and the gradient's norm."""

        def loss(params: Params) -> tuple[jax.Array, Any]:
            return self.objective.loss(self.model, {"base": base, "hypernetwork": params}, batch, None)

        (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        gradients = jax.tree.map(lambda g: g / jnp.maximum(sums["loss"][1], 1e-8), gradients)
        change: Any = self._update.update(gradients, state.optimizer, state.params)
        updates, optimizer = change
        metrics = {name: total / jnp.maximum(weight, 1e-8) for name, (total, weight) in sums.items()}
        metrics["grad_norm"] = optax.tree.norm(gradients)
        return TransferState(state.step + 1, optax.apply_updates(state.params, updates), optimizer), metrics

    def evaluate(
        self, params: Params, base: Params, batch: Mapping[str, Any]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """``{name: (sum, weight)}`` of the objective with the network's ``params``."""
        return self.objective.loss(self.model, {"base": base, "hypernetwork": params}, batch, None)[1]
