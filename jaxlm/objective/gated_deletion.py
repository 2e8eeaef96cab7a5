"""Gated deletion: another objective plus alpha times the mean of a delete gate, and the controller that sets alpha.

Paper: Kallini et al. 2024, MrT5 (arXiv 2410.20771). Formula: loss + alpha mean(G) over the source's real tokens
(`jaxlm.model.delete_gate`), where G = 0 keeps and k < 0 deletes, so a larger alpha deletes more. The controller follows
a target rate: with e = target - deleted share, p <- 0.9 p + 0.1 kp e, i <- i + ki e, alpha = max(0, p + i).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require, slot
from jaxlm.core.types import ModelFn, Params

_ROWS = 0x68617264  # folded into the key that draws them

Batch = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Control(NamedTuple):
    """The state of a controller: what is proportional to the errors of late, and the sum of all."""

    p: jax.Array | float = 0.0
    i: jax.Array | float = 0.0

    @property
    def alpha(self) -> jax.Array:
        return jnp.maximum(0.0, self.p + self.i)


@dataclasses.dataclass(frozen=True)
class RateController(Spec):
    """Follows a target share of deleted tokens.

    Attributes:
      target: the share, between 0 and 1.
      kp, ki: gains of the proportional and the summed error.
    """

    target: float = 0.5
    kp: float = 0.5
    ki: float = 1e-5

    def check(self) -> None:
        require(0 < self.target < 1, f"RateController.target: expected a share of tokens in (0, 1), got {self.target}")
        require(self.kp >= 0 and self.ki >= 0, f"RateController: expected gains >= 0, got {self.kp} and {self.ki}")

    def __call__(self, state: Control, deleted: jax.Array | float) -> Control:
        """The next state, whose alpha is for the next step, from the share that was deleted in this one."""
        error = self.target - deleted
        return Control(0.9 * state.p + 0.1 * self.kp * error, state.i + self.ki * error)


@dataclasses.dataclass(frozen=True)
class GatedDeletion(Spec):
    """The loss of another objective, and a price of every token that the gate keeps.

    Attributes:
      alpha: factor of the mean gate, where no controller sets it.
      controller: of the rate, which sets alpha from step to step, or None.
      delay: steps before the controller begins; until then alpha is 0. The gate opens all the way in that time, and
        tokens that are used by the end of it resist.
      hard_share: of the rows of a batch in training, drawn anew each time, are read as after a hard deletion: in the
        others a kept token's gate still counts, and a model can come to live by that.
      inner: the other objective.
    """

    paper: ClassVar[str] = "Kallini et al. 2024, MrT5: Dynamic Token Merging for Efficient Byte-level Language Models"

    alpha: float = 0.0
    controller: RateController | None = None
    delay: int = 0
    hard_share: float = 0.0
    inner: Any = slot("objective", "sequence_to_sequence")

    def check(self) -> None:
        require(self.alpha >= 0, f"GatedDeletion.alpha: expected a number >= 0, got {self.alpha}")
        require(0 <= self.hard_share <= 1, f"GatedDeletion.hard_share: expected a share of rows, got {self.hard_share}")
        require(self.delay >= 0, f"GatedDeletion.delay: expected a number of steps >= 0, got {self.delay}")
        require(
            self.controller is not None or not self.delay,
            f"GatedDeletion.delay: {self.delay} steps, but no controller that would begin after them",
        )
        require(
            self.controller is None or not self.alpha,
            f"GatedDeletion.alpha: the controller sets it; expected 0, got {self.alpha}",
        )

    def start(self) -> Any:
        """What a run keeps (`jaxlm.train.step.Follows`): the state of the controller; () without one."""
        return () if self.controller is None else Control(jnp.zeros(()), jnp.zeros(()))

    def informed(self, batch: Batch, feedback: Any) -> Batch:
        """The batch with ``alpha`` [B], the same for all rows, where there is a controller."""
        if self.controller is None:
            return batch
        return {**batch, "alpha": jnp.full(batch["source"].shape[:1], feedback.alpha)}

    def follow(self, feedback: Any, step: jax.Array, metrics: Mapping[str, jax.Array]) -> Any:
        """The controller's next state; until the delay is over, the one before."""
        if self.controller is None:
            return feedback
        following = self.controller(feedback, metrics["deleted"])
        return jax.tree.map(lambda new, old: jnp.where(step > self.delay, new, old), following, feedback)

    def prepare(self, batch: Batch, rng: jax.Array) -> Batch:
        return {**batch, **self.inner.prepare(batch, rng)}

    def loss(self, model: ModelFn, params: Params, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The inner loss and the gate's, each times the batch's weight; ``gate``, ``deleted`` and ``alpha`` are among
        the metrics. An ``alpha`` [B] in the batch, the same for all rows, is taken in place of the objective's. Means
        of gates are those of the batch that is given: of each microbatch, where a batch is accumulated.

        Raises `ConfigError` for a model without a gate.
        """
        if self.hard_share and rng is not None:
            rows = jax.random.bernoulli(jax.random.fold_in(rng, _ROWS), self.hard_share, batch["source"].shape[:1])
            batch = {**batch, "hard_rows": rows}
        total, metrics = self.inner.loss(model, params, batch, rng)
        require("gate" in metrics, "GatedDeletion: the model has no DeleteGate")
        alpha = jnp.mean(batch["alpha"]) if "alpha" in batch else self.alpha
        gate, weight = metrics["gate"]
        return total + alpha * gate, {**metrics, "alpha": (alpha * weight, weight)}
