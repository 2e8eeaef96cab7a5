"""What a training run is, beside its model and data."""

from __future__ import annotations

import dataclasses

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import choose
from jaxlm.dist.mesh import Mesh
from jaxlm.train.lora import Lora
from jaxlm.train.metrics import WRITERS
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.resume import Migration

# Of what a checkpoint says of its run; a change of its fields raises it and says how an older one is read.
VERSION = 1
MIGRATIONS: dict[int, Migration] = {}

# What may differ when a run is resumed: where it runs and what it reports, not what it computes.
FREE = ("mesh", "log_every", "eval_every", "save_every", "keep", "writers")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Spec):
    """A training run.

    Attributes:
      steps: updates in all.
      batch_size: rows of the global batch, over all devices and microbatches.
      accumulate: microbatches a batch is cut into, to save memory; the result is the same.
      seed: of initial values, order of data, dropout, drawn positions.
      optimizer: what is trained and how.
      lora: adapters trained in place of the parameters, or None.
      mesh: how the devices are used.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations; 0 for one at the end.
      save_every: steps between checkpoints; 0 for one at the end.
      keep: how many of the newest checkpoints stay, beside the best.
      writers: of metrics, beside metrics.jsonl: ``"tensorboard"``, ``"wandb"``, ``"trackio"``.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    seed: int = 0
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    mesh: Mesh = Mesh()
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    keep: int = 3
    writers: tuple[str, ...] = ()

    def check(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            value = getattr(self, name)
            require(value >= 1, f"TrainConfig.{name}: expected 1 or more, got {value}")
        for name in ("eval_every", "save_every"):
            value = getattr(self, name)
            require(value >= 0, f"TrainConfig.{name}: expected 0 (at the end only) or more, got {value}")
        require(0 <= self.seed < 2**32, f"TrainConfig.seed: expected 0..2^32-1, got {self.seed}")
        require(
            self.batch_size % self.accumulate == 0,
            f"TrainConfig.accumulate {self.accumulate} does not divide batch_size {self.batch_size}",
        )
        for name in self.writers:
            choose("metrics writer", name, WRITERS)
