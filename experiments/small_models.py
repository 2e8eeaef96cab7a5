"""Training of the many small models of a study: batches of one size, and steps fused into calls of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from jaxlm.data.batch import pad_batch
from jaxlm.data.loader import Loader
from jaxlm.train.step import Trainer, TrainState

REPLOT = flags.DEFINE_bool(
    "replot", False, "draw the figures and print the table from results.csv alone; train nothing"
)


def training_batch(rows: list[Any], length: int) -> dict[str, np.ndarray]:
    """A batch without segment ids: under a causal mask, padding on the right is seen by nobody whose loss counts."""
    batch = pad_batch(rows, length)
    return {name: batch[name] for name in ("tokens", "targets", "weights")}


def train(
    trainer: Trainer,
    chunk: Callable[..., Any],
    loader: Loader,
    steps_per_call: int,
    report_steps: Callable[[int, Any], None],
) -> TrainState:
    """Trains one model; ``chunk`` is the compiled scan of `Trainer.step` over a stack of batches."""
    state = trainer.init(seed=loader.seed)
    for start in range(0, trainer.total_steps, steps_per_call):
        steps = range(start, min(start + steps_per_call, trainer.total_steps))
        batches = [loader(step) for step in steps]
        state, metrics = chunk(state, {name: np.stack([b[name] for b in batches]) for name in batches[0]})
        trainer.optimizer.stop_if_stuck(int(metrics["skipped_in_a_row"][-1]), steps[-1] + 1)
        report_steps(len(steps), metrics)
    return state
