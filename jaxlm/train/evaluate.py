"""Evaluation: the objective's sums over all of a data set, divided once by their weights.

The last batch of an epoch is filled with rows of weight 0, so every token counts exactly once, whatever the batch size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.data.loader import Loader
from jaxlm.data.prefetch import Prefetch
from jaxlm.train.ahead import ahead
from jaxlm.train.step import Trainer, TrainState


class Evaluator:
    """Evaluates states of one run on one data set; compiled once.

    Args:
      trainer: whose model and objective are used: with averaged parameters where those are kept, adapters merged.
      loader: with ``remainder="pad"``; one epoch of it is the data set.
    """

    def __init__(self, trainer: Trainer, loader: Loader):
        require(loader.remainder == "pad", f"evaluation needs a Loader with remainder='pad', got {loader.remainder!r}")
        self._trainer, self._loader = trainer, loader

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The objective's means over the data set; what a model draws at random depends on the batch's number alone."""
        sums, behind = [], ahead()
        with Prefetch(self._load, stop_step=self._loader.steps_per_epoch) as batches:
            for i, batch in batches:
                sums.append(self._sums(state, batch, np.uint32(i)))
                if len(sums) > behind:
                    jax.block_until_ready(sums[-1 - behind])
        # Added on the host in float64: a float32 sum over a million tokens loses digits.
        total = jax.tree.map(lambda *parts: sum(map(float, parts)), *jax.device_get(sums))
        return {name: value / weight if weight else float("nan") for name, (value, weight) in total.items()}

    @functools.cached_property
    def _sums(self) -> Callable[..., dict[str, Any]]:
        trainer = self._trainer
        return jax.jit(lambda state, batch, seed: trainer.evaluate(trainer.averaged(state), batch, seed))

    def _load(self, step: int) -> dict[str, jax.Array]:
        return load(self._trainer.mesh, self._loader, step)


def load(mesh: jax.sharding.Mesh | None, loader: Loader, step: int) -> dict[str, jax.Array]:
    """A loader's batch of a step on the devices of ``mesh``."""
    return dist.global_batch(mesh, lambda rows: loader(step, rows), loader.batch_size)
