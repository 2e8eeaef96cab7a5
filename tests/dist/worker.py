"""One process of several: ``python -m tests.dist.worker task folder mesh``, placed as `jaxlm.dist.processes` says.

``steps`` repeats the run of this folder and saves what it saw. ``train`` trains in the folder with checkpoints; a
further argument is the step at whose batch this process kills itself. Both start from the parameters in ``start.npz``.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.core.params import map_specs
from jaxlm.data.loader import Batch, Loader
from jaxlm.dist import Mesh, processes
from jaxlm.model.language_model import LanguageModel
from jaxlm.objective.next_token import NextToken
from jaxlm.train.config import TrainConfig
from jaxlm.train.loop import fit
from tests.dist.runs import MODEL, OPTIMIZER, ROWS, STEPS, loaders, mesh_of, run, trainer, whole


@dataclasses.dataclass(frozen=True)
class Deadly(Loader):
    """A loader that kills its process, as a power cut would, when asked for the batch of step ``last``."""

    last: int = -1

    def __call__(self, step: int, rows: slice | None = None) -> Batch:
        if step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(step, rows)


def start(folder: Path) -> dict[str, Any]:
    """The parameters in ``start.npz``: drawing them here would take longer than the whole run."""
    values = np.load(folder / "start.npz")
    return map_specs(lambda path, _: values[path], trainer(None).specs)


def steps(folder: Path, mesh: str) -> None:
    train = trainer(mesh_of(mesh))
    result = run(train, train.init(start(folder)))
    np.savez(folder / f"{jax.process_index()}.npz", losses=result.losses, **result.gradient)


def train(folder: Path, mesh: str, last: str = "-1") -> None:
    data, fsdp, tensor = map(int, mesh.split("x"))
    config = TrainConfig(
        steps=STEPS, batch_size=ROWS, optimizer=OPTIMIZER, mesh=Mesh(data, fsdp, tensor), log_every=1, save_every=4
    )
    loader = Deadly(loaders()[0].source, ROWS, last=int(last))
    model = LanguageModel(MODEL)
    end = whole(fit(folder / "run", model, NextToken(), loader, config, params=start(folder), quiet=True).state)
    if jax.process_index() == 0:
        np.savez(folder / "end.npz", **end)


if __name__ == "__main__":
    processes.initialize()
    tasks: dict[str, Any] = {"steps": steps, "train": train}
    tasks[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
