"""Length generalization: train on short examples, test on longer ones, one position encoding beside the other.

Kazemnejad et al. 2023, "The Impact of Positional Encoding on Length Generalization in Transformers": decoders without
any position encoding (NoPE) extrapolate better than the usual encodings. Every (task, encoding, seed) is one small
decoder trained from scratch; exact match is teacher-forced, which for exact match is the same as greedy decoding.

Writes to --workdir: config.json, provenance.json, results.csv (task, position, seed, length, exact_match), table.txt,
and figures as PNG. Finished runs are kept, so an interrupted study continues where it stopped; --replot only redraws.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import flags as config_flags
from experiments import length_generalization_report as report
from experiments import study as frame
from experiments.small_models import REPLOT, train, training_batch
from jaxlm.core import registry
from jaxlm.core.config import Spec, renewed, require, slot, to_dict
from jaxlm.data.loader import Loader
from jaxlm.data.tasks.base import Task
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer
from jaxlm.train.workdir import claim_workdir

flags.declare_key_flag("replot")  # so that --help shows it


@dataclasses.dataclass(frozen=True)
class Study(Spec):
    """A task, and how long each model trains on it.

    Attributes:
      task: with its training and evaluation lengths.
      steps: of training.
      label: its name in tables, figures and results.csv; empty for the task's registered one.
    """

    task: Any = slot("task", "copy_rsc")
    steps: int = 600
    label: str = ""

    def check(self) -> None:
        require(self.steps > 0, f"Study.steps: expected a positive integer, got {self.steps}")

    @property
    def name(self) -> str:
        return self.label or report.task_label(self.task)


@dataclasses.dataclass(frozen=True)
class Encoding(Spec):
    """One column of the table.

    Attributes:
      label: its name in tables, figures and results.csv.
      position: the encoding.
      scale: of the attention logits; 0 for 1 / sqrt(head width), 1 for none (as in the paper).
      ranked: whether it takes part in the mean reciprocal rank.
      coupled: the task says what the encoding looks up (position coupling), which it then must be able to.
      mixer: in place of the model's attention, with its own position and scale; None to keep that.
    """

    label: str = "none"
    position: Any = slot("position", "none")
    scale: float = 0.0
    ranked: bool = True
    coupled: bool = False
    mixer: Any = slot("mixer", None, optional=True)

    def check(self) -> None:
        bare = registry.name_of("position", self.position) == "none" and not self.scale
        require(self.mixer is None or bare, f"encoding {self.label!r}: a mixer has a position and a scale of its own")

    def task(self, task: Task) -> Task:
        """The task as this column wants it. Raises `ConfigError` for one that cannot give positions."""
        if not self.coupled:
            return task
        able = any(field.name == "coupled" for field in dataclasses.fields(task))
        require(able, f"encoding {self.label!r} is coupled, and task {report.task_label(task)!r} gives no positions")
        changes: dict[str, Any] = {"coupled": True}
        return dataclasses.replace(task, **changes)


@dataclasses.dataclass(frozen=True)
class RunConfig(Spec):
    """The whole study.

    Attributes:
      studies: the tasks.
      encodings: what is compared.
      seeds: of initial values and data order; every (task, encoding) is run with each.
      model: everything but the position encoding, which each encoding puts into every attention mixer.
      optimizer: the same for all.
      batch_size: examples per step.
      eval_examples: per length.
      steps_per_call: training steps fused into one call of the device.
      workers: (task, encoding) pairs trained at the same time; 0 for one per core on a CPU and one elsewhere.
    """

    studies: tuple[Study, ...] = (Study(),)
    encodings: tuple[Encoding, ...] = (Encoding(),)
    seeds: tuple[int, ...] = (0,)
    model: ModelSpec = ModelSpec(
        vocab_size=128, width=48, layers=(Group((Block(mixer=Attention(heads=4)),), 2),), remat="none"
    )
    optimizer: Optimizer = Optimizer()
    batch_size: int = 32
    eval_examples: int = 100
    steps_per_call: int = 50
    workers: int = 0

    def check(self) -> None:
        for field, labels in (
            ("encodings", [encoding.label for encoding in self.encodings]),
            ("studies", [study.name for study in self.studies]),
        ):
            require(len(set(labels)) == len(labels), f"RunConfig.{field}: labels must differ, got {labels}")
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"RunConfig.seeds: expected distinct seeds, got {self.seeds}"
        )
        require(min(self.batch_size, self.eval_examples, self.steps_per_call) > 0, "RunConfig: sizes must be positive")
        for study in self.studies:
            require(
                study.task.vocab_size <= self.model.vocab_size,
                f"model.vocab_size {self.model.vocab_size} is smaller than the task's {study.task.vocab_size}",
            )
            for encoding in self.encodings:
                spec = model_spec(self, encoding)
                decoder.param_specs(spec)  # widths that do not divide are found here
                task = encoding.task(study.task)
                limit, need = decoder.max_positions(spec), task.places_bound(longest(task))
                require(
                    limit is None or need <= limit,
                    f"encoding {encoding.label!r} represents {limit} positions; the longest test example has {need}",
                )


def longest(task: Task) -> int:
    return max(task.train_lengths[1], task.eval_lengths[1])


def places(task: Task) -> int:
    """Token places that hold any training or evaluation example."""
    return task.tokens_bound(longest(task)) - 1


def model_spec(config: RunConfig, encoding: Encoding) -> ModelSpec:
    """The model with the encoding in every attention mixer, or the encoding's own mixer in the place of each."""

    def block(b: Block) -> Block:
        if not isinstance(b.mixer, Attention):
            return b
        if encoding.mixer is not None:
            return dataclasses.replace(b, mixer=encoding.mixer)
        return dataclasses.replace(
            b, mixer=dataclasses.replace(b.mixer, position=encoding.position, scale=encoding.scale)
        )

    groups = tuple(dataclasses.replace(g, pattern=tuple(map(block, g.pattern))) for g in config.model.layers)
    return dataclasses.replace(config.model, layers=groups)


@jax.jit(static_argnums=0)
def exact_matches(model: Decoder, params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Boolean [B]: the model's first choice is right at every weighted target of the row."""
    tokens = batch["tokens"]
    plain = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    ids = batch.get("position_ids")
    drawn = model.draw(key, plain if ids is None else ids)
    where = {"positions": drawn} if ids is None else {"position_ids": ids if drawn is None else drawn}
    out = model(params, tokens, ordered=True, **where)
    assert out.logits is not None
    return ((jnp.argmax(out.logits, -1) == batch["targets"]) | (batch["weights"] == 0)).all(1)


def evaluate(model: Decoder, params: Any, task: Task, examples: int, seed: int) -> dict[int, float]:
    """Exact match per length, over the training and the evaluation lengths, on examples that training never sees."""
    out, size = {}, places(task)
    for low, high in (task.train_lengths, task.eval_lengths):
        for length in range(low, high + 1):
            batch = training_batch([task.at(length, i) for i in range(examples)], size)
            key = jax.random.fold_in(jax.random.key(seed), length)
            out[length] = round(float(jnp.mean(exact_matches(model, params, batch, key))), 4)
    return out


def run_pair(
    config: RunConfig,
    study: Study,
    encoding: Encoding,
    seeds: Sequence[int],
    progress: frame.Report,
    finish: Callable[[list[report.Row], float], None],
) -> None:
    """Trains and evaluates one encoding on one task for every seed, compiled once."""
    task = encoding.task(study.task)
    model = Decoder(model_spec(config, encoding))
    trainer = Trainer(model, NextToken(), config.optimizer, study.steps)
    size = task.tokens_bound(task.train_lengths[1]) - 1
    loader = Loader(task, config.batch_size, collate=lambda rows: training_batch(rows, size))
    for seed in seeds:
        began = time.monotonic()
        state = train(trainer, dataclasses.replace(loader, seed=seed), config.steps_per_call, progress.steps)
        params = trainer.averaged(state)
        scores = evaluate(model, params, task, config.eval_examples, seed)
        rows = [report.Row(study.name, encoding.label, seed, length, score) for length, score in scores.items()]
        finish(rows, time.monotonic() - began)


def main(config: RunConfig, workdir: Path) -> None:
    if REPLOT.value:
        rows = frame.read(workdir, report.Row)
    else:
        claim_workdir(workdir, to_dict(config), renew=functools.partial(renewed, type(config)))
        rows = run(config, workdir)
    print(
        report.write(
            rows,
            workdir,
            ranked=[e.label for e in config.encodings if e.ranked],
            tasks={s.name: s.task for s in config.studies},
        )
    )


def run(config: RunConfig, workdir: Path) -> list[report.Row]:
    """Every run of the study that the workdir does not hold yet; returns all rows."""
    rows, lock = frame.read(workdir, report.Row, missing_ok=True), threading.Lock()
    done = {(row.task, row.position, row.seed) for row in rows}
    jobs: list[tuple[Study, Encoding, tuple[int, ...]]] = []
    for study in config.studies:
        for encoding in config.encodings:
            seeds = tuple(s for s in config.seeds if (study.name, encoding.label, s) not in done)
            if seeds:
                jobs.append((study, encoding, seeds))

    def work(job: tuple[Study, Encoding, tuple[int, ...]], progress: frame.Report) -> None:
        def finish(found: list[report.Row], seconds: float) -> None:
            with lock:
                rows.extend(found)
                frame.save(rows, workdir, report.Row)
            task, label, seed, *_ = found[0]
            progress.note(f"{task} {label} seed {seed}: {report.one_line(found, task, label, seed)} ({seconds:.0f} s)")

        run_pair(config, *job, progress, finish)

    steps = sum(study.steps * len(seeds) for study, _, seeds in jobs)
    frame.run(jobs, work, workdir, steps=steps, workers=config.workers)
    return rows


if __name__ == "__main__":
    config_flags.run(main, default="configs/length_generalization.py:demo")
