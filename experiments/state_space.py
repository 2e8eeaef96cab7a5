"""State-space and other recurrent mixers: what they recall, what they forget, and where attention does better.

One study per preset of configs/state_space.py: recall against state size, copying against length, the collapse beyond
the training length and its mitigations, passkeys against state size, long-range tasks, verbatim memory of lists, and
the reversed source. Each (part, arm) is a small model trained from scratch with every seed, at the learning rate that
did best with the first.

Writes to --workdir: config.json, provenance.json, results.csv (part, arm, rate, seed, step, setting, at, measure,
value), table.txt, and a figure as PNG. Finished runs are kept, so an interrupted study continues where it stopped;
--replot only redraws.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from pathlib import Path

from absl import flags

from experiments import flags as config_flags
from experiments import state_space_report as report
from experiments import study as frame
from experiments.small_models import REPLOT, train
from experiments.state_space_plan import Arm, RunConfig
from experiments.state_space_reading import READERS, Batch, batch_of
from jaxlm.core.config import renewed, to_dict
from jaxlm.data.batch import pack_batch
from jaxlm.data.loader import Loader
from jaxlm.data.tasks.base import Example
from jaxlm.model.decoder import Decoder
from jaxlm.objective.next_token import NextToken
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer
from jaxlm.train.workdir import claim_workdir

flags.declare_key_flag("replot")  # so that --help shows them
flags.declare_key_flag("share")


def optimizer_at(config: RunConfig, rate: float) -> Optimizer:
    return dataclasses.replace(config.optimizer, schedule=dataclasses.replace(config.optimizer.schedule, peak=rate))


class Runs:
    """The runs of one arm, compiled once per learning rate."""

    def __init__(self, config: RunConfig, arm: Arm, progress: frame.Report):
        self.config, self.arm, self.progress = config, arm, progress
        self.model = Decoder(arm.model)
        places = arm.task.tokens_bound(arm.task.train_lengths[1]) - 1

        def collate(examples: list[Example]) -> Batch:
            return pack_batch(examples, *arm.packed) if arm.packed else batch_of(arm, examples, places)

        self.loader = Loader(arm.task, arm.batch_size, collate=collate)
        self.trainers: dict[float, Trainer] = {}

    def __call__(self, rate: float, seed: int) -> list[report.Row]:
        """One training, read at each of the study's times."""
        config, arm = self.config, self.arm
        if rate not in self.trainers:
            self.trainers[rate] = Trainer(self.model, NextToken(), optimizer_at(config, rate), arm.steps)
        trainer = self.trainers[rate]
        loader, state, rows = dataclasses.replace(self.loader, seed=seed), trainer.init(seed=seed), []
        for reading in range(1, config.readings + 1):
            until = arm.steps * reading // config.readings
            state = train(trainer, loader, config.steps_per_call, self.progress.steps, state=state, until=until)
            found = READERS[config.study](config, arm, self.model, trainer.averaged(state))
            rows += [report.Row(arm.part, arm.label, f"{rate:g}", seed, until, *one) for one in found]
        return rows


def run(config: RunConfig, workdir: Path) -> list[report.Row]:
    """Every run of the study that the workdir does not hold yet; returns all rows."""
    rows, lock = frame.read(workdir, report.Row, missing_ok=True), threading.Lock()

    def held(arm: Arm) -> set[tuple[str, int]]:
        with lock:
            return {(row.rate, row.seed) for row in rows if (row.part, row.arm) == (arm.part, arm.label)}

    def missing(arm: Arm) -> int:
        """How many runs an arm lacks; the best rate is known only when all have had the first seed."""
        first = {(f"{rate:g}", config.seeds[0]) for rate in config.rates} - held(arm)
        if first:
            return len(first) + len(config.seeds) - 1
        best = report.best_rate(rows, arm.part, arm.label, config.seeds[0])
        return len({(best, seed) for seed in config.seeds} - held(arm))

    def work(arm: Arm, progress: frame.Report) -> None:
        one = Runs(config, arm, progress)

        def do(rate: float, seed: int) -> None:
            if (f"{rate:g}", seed) in held(arm):
                return
            began = time.monotonic()
            found = one(rate, seed)
            with lock:
                rows[:] = frame.add(found, workdir, report.Row)
            progress.note(
                f"{arm.part} {arm.label} rate {rate:g} seed {seed}: {report.one_line(found)} "
                f"({time.monotonic() - began:.0f} s)"
            )

        first, *others = config.seeds
        for rate in config.rates:
            do(rate, first)
        best = report.best_rate(rows, arm.part, arm.label, first)
        for seed in others:
            do(next(rate for rate in config.rates if f"{rate:g}" == best), seed)

    # The longest first, so that the cores are all busy to the end.
    arms = frame.share(sorted(config.arms, key=report.work_of, reverse=True))
    jobs = [arm for arm in arms if missing(arm)]
    frame.run(jobs, work, workdir, steps=sum(arm.steps * missing(arm) for arm in jobs), workers=config.workers)
    return rows


def main(config: RunConfig, workdir: Path) -> None:
    if not REPLOT.value:
        claim_workdir(workdir, to_dict(config), renew=functools.partial(renewed, type(config)))
        run(config, workdir)
    print(report.write(config, frame.read(workdir, report.Row), workdir))  # as on file, so that --replot says the same


if __name__ == "__main__":
    config_flags.run(main, default="configs/state_space.py:recall_study")
