"""Training of the many small models of a study: batches of one size, and steps fused into calls of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from absl import flags

from jaxlm.data.batch import pad_batch
from jaxlm.train.step import Trainer, TrainState

REPLOT = flags.DEFINE_bool(
    "replot", False, "draw the figures and print the table from results.csv alone; train nothing"
)


class Batches(Protocol):
    """What a `jaxlm.data.loader.Loader` is here: the batch of every step, and the seed of their order."""

    @property
    def seed(self) -> int: ...

    def __call__(self, step: int, /) -> dict[str, np.ndarray]: ...


def training_batch(rows: list[Any], length: int) -> dict[str, np.ndarray]:
    """A batch without segment ids: under a causal mask, padding on the right is seen by nobody whose loss counts."""
    batch = pad_batch(rows, length)
    return {name: batch[name] for name in ("tokens", "targets", "weights", "position_ids") if name in batch}


def train(
    trainer: Trainer,
    batches: Batches,
    steps_per_call: int,
    report_steps: Callable[[int, Any], None],
    *,
    state: TrainState | None = None,
    until: int | None = None,
) -> TrainState:
    """Trains one model.

    Args:
      trainer: of the model; its steps are compiled once for all runs.
      batches: by step.
      steps_per_call: how many steps are fused.
      report_steps: told how many more are done, and their stacked metrics.
      state: to continue; None for fresh values by the seed of ``batches``.
      until: the step to stop at; None for the trainer's last.
    """
    if state is None:
        state = trainer.init(seed=batches.seed)
    stop = trainer.total_steps if until is None else until
    for start in range(int(state.step), stop, steps_per_call):
        steps = range(start, min(start + steps_per_call, stop))
        found = [batches(step) for step in steps]
        stacked = {name: np.stack([b[name] for b in found]) for name in found[0]}
        state, metrics = trainer.steps(state, stacked)
        trainer.optimizer.stop_if_stuck(int(metrics["skipped_in_a_row"][-1]), steps[-1] + 1)
        report_steps(len(steps), metrics)
    assert state is not None
    return state
