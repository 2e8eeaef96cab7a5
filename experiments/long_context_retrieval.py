"""Retrieval far beyond the training length: one attention beside the other, on a passkey hidden in noise.

Mohtashami and Jaggi 2023, "Landmark Attention": a model trained with landmarks on short rows finds a passkey in rows
many times as long, reading a few retrieved blocks per token. Beside it full attention with rotary positions, sliding
windows with and without sinks, and layers of mixed spans. Every (arm, seed) is one small model trained from scratch on
short rows, each with several places at which a pair comes again; the answer is right if the model's first choice after
the whole row is the symbol that was stored once.

Writes to --workdir: config.json, provenance.json, results.csv (arm, seed, length, depth, examples, accuracy),
table.txt, and figures as PNG: accuracy against length, and heat maps over length and depth. Finished runs are kept, so
an interrupted study continues where it stopped; --replot only redraws.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import flags as config_flags
from experiments import long_context_retrieval_report as report
from experiments import study
from experiments.small_models import REPLOT, train
from jaxlm.core.config import Spec, renewed, require, slot, to_dict
from jaxlm.data.loader import Loader
from jaxlm.data.tasks.base import Example
from jaxlm.data.tasks.passkey import Passkey
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.model.spec import ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer
from jaxlm.train.workdir import claim_workdir

flags.declare_key_flag("replot")  # so that --help shows them
flags.declare_key_flag("share")


@dataclasses.dataclass(frozen=True)
class Arm(Spec):
    """One model of the comparison.

    Attributes:
      label: its name in tables, figures and results.csv.
      model: what is trained.
      cache: how it reads the row at the test, in pieces; None for one full pass.
    """

    label: str = "full"
    model: ModelSpec = ModelSpec()
    cache: Any = slot("cache", None, optional=True)


@dataclasses.dataclass(frozen=True)
class RunConfig(Spec):
    """The whole study.

    Attributes:
      arms: what is compared.
      task: what is trained on; the longest training length is the 1x of ``multiples``. Tests store each pair once.
      multiples: of the training length, at which models are tested.
      seeds: of initial values and data order; every arm is run with each.
      optimizer, steps, batch_size: of training, the same for all.
      eval_examples: per length; ``eval_batch`` of them at a time.
      piece: tokens of a piece, where a row is read through a cache.
      depths: bins of the depth at which the pair lies.
      steps_per_call: training steps fused into one call of the device.
      workers: (arm, seed) pairs trained at the same time; 0 for one per core on a CPU and one elsewhere.
    """

    arms: tuple[Arm, ...] = (Arm(),)
    task: Passkey = Passkey(train_lengths=(8, 46), eval_lengths=(47, 1472))
    multiples: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seeds: tuple[int, ...] = (0,)
    optimizer: Optimizer = Optimizer()
    steps: int = 3000
    batch_size: int = 32
    eval_examples: int = 100
    eval_batch: int = 25
    piece: int = 64
    depths: int = 10
    steps_per_call: int = 50
    workers: int = 0

    def check(self) -> None:
        labels = [arm.label for arm in self.arms]
        require(len(set(labels)) == len(labels) > 0, f"RunConfig.arms: labels must differ, got {labels}")
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"RunConfig.seeds: expected distinct seeds, got {self.seeds}"
        )
        sizes = (self.steps, self.batch_size, self.eval_examples, self.eval_batch, self.piece, self.depths)
        require(min(*sizes, self.steps_per_call) > 0, "RunConfig: sizes must be positive")
        require(
            self.eval_examples % self.eval_batch == 0,
            f"RunConfig.eval_examples: expected a multiple of eval_batch {self.eval_batch}, got {self.eval_examples}",
        )
        reach = self.task.eval_lengths[1]
        for length in self.lengths:
            require(length <= reach, f"RunConfig.multiples: {length} words are beyond task.eval_lengths, {reach}")
        for arm in self.arms:
            require(
                self.task.vocab_size <= arm.model.vocab_size,
                f"arm {arm.label!r}: vocab_size {arm.model.vocab_size} is below the task's {self.task.vocab_size}",
            )
            decoder.param_specs(arm.model)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Words of noise at which models are tested."""
        return tuple(self.task.train_lengths[1] * n for n in self.multiples)


def recall_batch(task: Passkey, rows: Sequence[Example], length: int) -> dict[str, np.ndarray]:
    """Rows without markers, padded on the right; the loss counts what follows each key that was there before."""
    batch: dict[str, Any] = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "targets")}
    batch["weights"] = np.zeros((len(rows), length), np.float32)
    for i, example in enumerate(rows):
        row = plain(example, answer=True)
        batch["tokens"][i, : len(row) - 1], batch["targets"][i, : len(row) - 1] = row[:-1], row[1:]
        batch["weights"][i, : len(row) - 1] = task.recalled(row[:-1])
    return batch


def plain(example: Example, answer: bool = False) -> np.ndarray:
    """The prompt's tokens after ``<bos>``, ending in the key that is asked for, and the answer if wanted."""
    end = example.prompt_length - 1
    return np.concatenate((example.tokens[:end], example.target[:1])) if answer else example.tokens[:end]


def answers(config: RunConfig, arm: Arm) -> Callable[..., jax.Array]:
    """A jitted ``(params, tokens [B, L]) -> int32 [B]``, the model's first choice after the row."""
    model = Decoder(arm.model)

    @jax.jit
    def whole(params: Any, tokens: jax.Array) -> jax.Array:
        return jnp.argmax(model.unembed(params, model(params, tokens, logits=False).hidden[:, -1]), -1)

    @jax.jit
    def in_pieces(params: Any, tokens: jax.Array) -> jax.Array:
        batch, length = tokens.shape
        state = decoder.init_state(arm.model, batch, length, arm.cache)
        first = length % config.piece or config.piece
        out = model(params, tokens[:, :first], state=state, logits=False)
        rest = tokens[:, first:].reshape(batch, -1, config.piece).swapaxes(0, 1)

        def step(carry: Any, piece: jax.Array) -> tuple[Any, None]:
            out = model(params, piece, state=carry[0], logits=False)
            return (out.state, out.hidden[:, -1]), None

        (_, hidden), _ = jax.lax.scan(step, (out.state, out.hidden[:, -1]), rest)
        return jnp.argmax(model.unembed(params, hidden), -1)

    return whole if arm.cache is None else in_pieces


def evaluate(config: RunConfig, arm: Arm, params: Any) -> list[tuple[int, int, int, float]]:
    """(length, depth bin, examples, accuracy) for every length, on examples that training never sees."""
    answer, task, rows = answers(config, arm), dataclasses.replace(config.task, copies=1), []
    for length in config.lengths:
        examples = [task.at(length, i) for i in range(config.eval_examples)]
        found = []
        for start in range(0, len(examples), config.eval_batch):
            part = examples[start : start + config.eval_batch]
            found.append(np.asarray(answer(params, np.stack([plain(e) for e in part]))))
        right = np.concatenate(found) == [e.target[0] for e in examples]
        bins = [min(int(task.depth(e) * config.depths), config.depths - 1) for e in examples]
        for depth in sorted(set(bins)):
            chosen = np.array(bins) == depth
            rows.append((length, depth, int(chosen.sum()), float(right[chosen].mean())))
    return rows


def run_one(config: RunConfig, arm: Arm, seed: int, report_steps: Callable[[int, Any], None]) -> list[report.Row]:
    """Trains and tests one model."""
    task = config.task
    trainer = Trainer(Decoder(arm.model), NextToken(), config.optimizer, config.steps)
    size = task.tokens_bound(task.train_lengths[1]) - 3  # no <sep>, no <eos>; the last token is only predicted
    loader = Loader(task, config.batch_size, seed=seed, collate=lambda rows: recall_batch(task, rows, size))
    params = trainer.averaged(train(trainer, loader, config.steps_per_call, report_steps))
    return [report.Row(arm.label, seed, *found) for found in evaluate(config, arm, params)]


def main(config: RunConfig, workdir: Path) -> None:
    if REPLOT.value:
        rows = study.read(workdir, report.Row)
    else:
        claim_workdir(workdir, to_dict(config), renew=functools.partial(renewed, type(config)))
        rows = run(config, workdir)
    print(report.write(rows, workdir, [arm.label for arm in config.arms], config.task.train_lengths[1], config.depths))


def run(config: RunConfig, workdir: Path) -> list[report.Row]:
    """Every run of the study that the workdir does not hold yet; returns all rows."""
    done = {(row.arm, row.seed) for row in study.read(workdir, report.Row, missing_ok=True)}
    every = study.share([(arm, seed) for seed in config.seeds for arm in config.arms])
    jobs = [(arm, seed) for arm, seed in every if (arm.label, seed) not in done]

    def work(job: tuple[Arm, int], progress: study.Report) -> None:
        (arm, seed), began = job, time.monotonic()
        found = run_one(config, arm, seed, progress.steps)
        study.add(found, workdir, report.Row)
        seconds = time.monotonic() - began
        progress.note(f"{arm.label} seed {seed}: {report.one_line(found, config.lengths)} ({seconds:.0f} s)")

    study.run(jobs, work, workdir, steps=config.steps * len(jobs), workers=config.workers)
    return study.read(workdir, report.Row, missing_ok=True)


if __name__ == "__main__":
    config_flags.run(main, default="configs/long_context_retrieval.py:study")
