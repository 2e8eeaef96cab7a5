"""Training the hypernetwork of `jaxlm.model.embedding_hypernetwork`: the step, and what it makes of a tokenizer.

    trainer = TransferTrainer(TransferModel(model.spec, EmbeddingHypernetwork()), TokenizerTransfer(), Optimizer(), 600)
    state = trainer.init(jax.random.key(0))
    step = jax.jit(trainer.step, donate_argnums=0)
    for batch in batches:                        # jaxlm.data.tokenizer_transfer.transfer_batch
        state, metrics = step(state, params, batch)

The model's parameters are an argument beside the state: they have no gradient, no moments, and are not copied.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.core.params import initialize
from jaxlm.core.types import Params, Specs
from jaxlm.model.embedding_hypernetwork import TransferModel
from jaxlm.train.optimizer import Optimizer


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
