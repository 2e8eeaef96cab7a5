"""Beyond the training length: every position encoding and every way to a longer context, side by side on one model.

Small byte models are trained at L on text, one for each position encoding. The rotary one is then read at 1x to 64x of
L with each training-free method (`jaxlm.extend`), and after fine-tuning with equal budgets. The same windows of
held-out text serve all: a window at a longer length ends at the same byte, so what differs is what the model does with
more context. Beside the loss by position: a passkey by its depth, and what a decoding step costs.

With --config.checkpoint=FOLDER (a Hugging Face folder or a run of ours) nothing is trained, and the methods are read on
that model.

Writes to --workdir: config.json, provenance.json, results.csv (arm, seed, length, part, loss in nats), passkey.csv,
decoding.csv, streaming.csv, sinks.csv, table.txt, and figures as PNG. Finished arms are kept, so an interrupted study
continues where it stopped; --replot only redraws.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import checkpoints, study
from experiments import context_extension_report as report
from experiments import extension_streaming as streaming
from experiments import flags as config_flags
from experiments.extension_plan import Arm, Base, RunConfig, Tuned
from experiments.extension_reading import read_decoding, read_losses, read_passkeys, read_streams
from experiments.extension_text import Planted, Text
from experiments.small_models import REPLOT, train
from jaxlm.core.config import renewed, to_dict
from jaxlm.core.params import initialize
from jaxlm.core.types import Params
from jaxlm.data.loader import Loader
from jaxlm.data.pack import rows
from jaxlm.data.text import read
from jaxlm.model import decoder, extend
from jaxlm.model.decoder import Decoder
from jaxlm.model.language_model import LanguageModel, replace
from jaxlm.model.spec import ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer
from jaxlm.train.workdir import claim_workdir

flags.declare_key_flag("replot")  # so that --help shows it

STEPS_PER_CALL = 50


def trained(
    config: RunConfig,
    model: ModelSpec,
    stages: tuple[int, ...],
    steps: int,
    optimizer: Optimizer,
    text: Text,
    seed: int,
    progress: study.Report,
    *,
    params: Params | None = None,
    first: int = 0,
) -> Params:
    """The parameters after ``steps`` steps of ``batch_tokens`` tokens, in rows of each stage's length in turn.

    Optimizer and schedule run on over the stages. Rows are of the joined documents, each of which sees only itself.

    Args:
      params: to start from; None for fresh ones.
      first: steps of the data that an earlier training has had.
    """
    trainer = Trainer(Decoder(model), NextToken(), optimizer, steps)
    state = trainer.init(params, seed=seed)
    for stage, length in enumerate(stages):
        loader = Loader(rows(text.train, length, "pack"), max(1, config.batch_tokens // length), seed=seed)
        batches = Planted(loader, text.needle, config.needles, first)
        until = steps * (stage + 1) // len(stages)
        state = train(trainer, batches, STEPS_PER_CALL, progress.steps, state=state, until=until)
    return trainer.averaged(state)


def overlaid(fresh: Params, params: Params) -> dict[str, Any]:
    """``params``, and what ``fresh`` has beside them."""
    return {
        name: overlaid(value, params[name]) if isinstance(value, dict) and name in params else params.get(name, value)
        for name, value in fresh.items()
    }


def tuned(
    config: RunConfig, arm: Tuned, base: Base, params: Params, text: Text, seed: int, progress: study.Report
) -> Arm:
    """The base, fine-tuned as ``arm`` says."""
    model = replace(LanguageModel(base.model), {"mixer.position": arm.position})
    fresh = jax.jit(functools.partial(initialize, decoder.param_specs(model.spec)))(jax.random.key(seed))
    optimizer = arm.optimizer or config.tune_optimizer
    start = overlaid(fresh, params)
    found = trained(
        config,
        model.spec,
        arm.lengths,
        config.tune_steps,
        optimizer,
        text,
        seed,
        progress,
        params=start,
        first=config.steps,
    )
    return Arm(arm.label, functools.partial(_same, model), found)


def untrained(config: RunConfig, model: LanguageModel, params: Params | None, method: str) -> Arm:
    """A training-free arm: the model made for each multiple."""

    def at(multiple: int) -> LanguageModel:
        return extend.extend(model, method, factor=multiple, original=config.original)

    return Arm(method, at, params, method)


@dataclasses.dataclass
class Results:
    """The rows of a workdir, written as they come."""

    workdir: Path
    losses: list[report.Row]
    passkeys: list[report.Passkey]
    decoding: list[report.Decoding]
    streams: list[report.Stream]
    sinks: list[report.Sinks]
    lock: Any = dataclasses.field(default_factory=threading.Lock)

    @classmethod
    def read(cls, workdir: Path, missing_ok: bool = False) -> Results:
        found: Any = [
            study.read(workdir, kind, missing_ok or kind is not report.Row, file) for kind, file in report.FILES.items()
        ]
        return cls(workdir, *found)

    def add(self, **more: list[Any]) -> None:
        """More rows of the lists named; the losses, which say what is done, are written last."""
        with self.lock:
            for name, rows in sorted(more.items(), key=lambda item: item[0] == "losses"):
                held = getattr(self, name)
                held += rows
                if held:
                    study.save(held, self.workdir, type(held[0]), report.FILES[type(held[0])])


def read_arm(config: RunConfig, arm: Arm, text: Text, seed: int, results: Results, progress: study.Report) -> None:
    """Everything that is measured of one arm."""
    began = time.monotonic()
    found = list(read_losses(config, arm, text, seed))
    results.add(
        losses=found,
        passkeys=list(read_passkeys(config, arm, text, seed)),
        streams=read_streams(config, arm, text, seed),
    )
    progress.note(f"{arm.label} seed {seed}: {report.one_line(found)} ({time.monotonic() - began:.0f} s to read)")


def work(
    config: RunConfig, base: Base, seed: int, missing: set[str], text: Text, results: Results, progress: Any
) -> None:
    """Trains a base and reads the arms that are made of it and ``missing``."""
    stages = (config.original,)
    params = trained(config, base.model, stages, config.steps, config.optimizer, text, seed, progress)
    model = LanguageModel(base.model)
    arms: list[Any] = [lambda: Arm(base.label, functools.partial(_same, model), params)]
    labels = [base.label]
    if base is config.bases[0]:
        arms += [functools.partial(untrained, config, model, params, method) for method in config.ways]
        arms += [functools.partial(tuned, config, arm, base, params, text, seed, progress) for arm in config.tuned]
        labels += [*config.ways, *(arm.label for arm in config.tuned)]
        if config.stream and base.label in missing:
            shares = streaming.sink_mass(
                base.model, params, text.windows(config.original, config.windows, config.original)
            )
            results.add(sinks=[report.Sinks(seed, layer, share) for layer, share in enumerate(shares)])
    for label, make_arm in zip(labels, arms, strict=True):
        if label in missing:
            read_arm(config, make_arm(), text, seed, results, progress)


def run(config: RunConfig, results: Results) -> None:
    """Every arm of the study that the results do not hold yet."""
    text = Text(read(config.source), ByteTokenizer())
    done = {(row.arm, row.seed) for row in results.losses}
    jobs, steps = [], 0
    for seed in config.seeds:
        for base in config.bases:
            first = base is config.bases[0]
            labels = {base.label} | ({*config.ways, *(arm.label for arm in config.tuned)} if first else set())
            if missing := {label for label in labels if (label, seed) not in done}:
                jobs.append((base, seed, frozenset(missing)))
                steps += config.steps + config.tune_steps * len(missing & {arm.label for arm in config.tuned})

    def job(one: Any, progress: study.Report) -> None:
        base, seed, missing = one
        work(config, base, seed, missing, text, results, progress)

    study.run(jobs, job, results.workdir, steps=steps, workers=config.workers)
    measure_decoding(config, every_arm(config), results)


def run_checkpoint(config: RunConfig, results: Results) -> None:
    """The training-free methods on a model that is there already."""
    folder = Path(config.checkpoint)
    model, params = checkpoints.load(folder)
    text = Text(read(config.source), checkpoints.tokenizer_of(folder, model))
    done = {row.arm for row in results.losses}

    def job(method: str, progress: study.Report) -> None:
        read_arm(config, untrained(config, model, params, method), text, config.seeds[0], results, progress)

    methods = [method for method in ("none", *config.ways) if method not in done]
    study.run(methods, job, results.workdir, steps=0, workers=1)
    arms = [untrained(config, model, params, method) for method in ("none", *config.ways)]
    measure_decoding(config, arms, results)


def measure_decoding(config: RunConfig, arms: Sequence[Arm], results: Results) -> None:
    """The cost of decoding of each arm that is not measured yet, one after the other, alone on the machine."""
    done = {row.arm for row in results.decoding}
    for arm in arms if config.decode_steps else ():
        if arm.label not in done:
            results.add(decoding=read_decoding(config, arm))


def every_arm(config: RunConfig) -> list[Arm]:
    """The arms of a study that trains, without their parameters."""
    first, arms = LanguageModel(config.bases[0].model), []
    for base in config.bases:
        arms.append(Arm(base.label, functools.partial(_same, LanguageModel(base.model)), None))
    arms += [untrained(config, first, None, method) for method in config.ways]
    for arm in config.tuned:
        model = replace(first, {"mixer.position": arm.position})
        arms.append(Arm(arm.label, functools.partial(_same, model), None))
    return arms


def _same(model: LanguageModel, multiple: int) -> LanguageModel:
    return model


def main(config: RunConfig, workdir: Path) -> None:
    if REPLOT.value:
        results = Results.read(workdir)
    else:
        claim_workdir(workdir, to_dict(config), renew=functools.partial(renewed, type(config)))
        results = Results.read(workdir, missing_ok=True)
        (run_checkpoint if config.checkpoint else run)(config, results)
    print(report.write(results, workdir, config.original, groups(config)))


def groups(config: RunConfig) -> dict[str, list[str]]:
    """The arms under the headings of the table."""
    if config.checkpoint:
        return {"methods without training": ["none", *config.ways]}
    first, *others = (base.label for base in config.bases)
    return {
        "rotary, without training": [first, *config.ways],
        "rotary, fine-tuned": [arm.label for arm in config.tuned],
        "trained with another encoding, mask or mixer": others,
    }


if __name__ == "__main__":
    config_flags.run(main, default="configs/context_extension.py:study")
