"""The loop around `jaxlm.train.step`: data, metrics, evaluation, checkpoints, resuming, and being told to stop.

A run is a function of its configuration. Batches are a function of (seed, step), all else that changes is in the
`TrainState`, and ``metrics.jsonl`` is cut back to the step a run resumes from: killed and started again, it ends with
the same bits and the same lines as one left alone. Figures of time, which cannot repeat, are named ``time/...``.

The device never waits for the host: a step is dispatched while those before it still compute, and its metrics are
fetched only where a line is due, one step late (`jaxlm.train.recorder`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxlm.core.config import make, renewed, require, to_dict
from jaxlm.core.types import Params
from jaxlm.data.loader import Loader
from jaxlm.data.prefetch import Prefetch
from jaxlm.dist.mesh import make_mesh
from jaxlm.model import decoder
from jaxlm.model.describe import model_flops
from jaxlm.model.language_model import Model
from jaxlm.model.spec import ModelSpec
from jaxlm.train import agreement
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.config import FREE, MIGRATIONS, VERSION, TrainConfig
from jaxlm.train.evaluate import Evaluator, load
from jaxlm.train.load import CHECKPOINTS
from jaxlm.train.metrics import FILE, open_writers, read_jsonl
from jaxlm.train.mfu import mfu
from jaxlm.train.preemption import Preemption
from jaxlm.train.profile import Profile
from jaxlm.train.progress import Progress
from jaxlm.train.recorder import Recorder, due
from jaxlm.train.resume import check_compatible, check_version
from jaxlm.train.step import Trainer, TrainState
from jaxlm.train.workdir import claim_workdir


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The end of a run: its pure functions and its last state."""

    trainer: Trainer
    state: TrainState

    @property
    def params(self) -> Params:
        """The model's parameters, averaged where averages are kept, adapters merged."""
        return self.trainer.averaged(self.state)


def make_trainer(model: Model, objective: Any, config: TrainConfig, devices: Sequence[Any] | None = None) -> Trainer:
    """The pure functions of a run. Raises `ConfigError`, before any compile, for parts that do not fit each other."""
    mesh = make_mesh(config.mesh, None if devices is None else list(devices))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.batch_size // config.accumulate
    require(
        rows % shards == 0,
        f"mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']} does not fit the batch: these {shards} parts do not "
        f"divide {rows} rows (batch_size / accumulate)",
    )
    alone = list(mesh.devices.flat) == jax.devices()[:1]
    trainer = Trainer(
        model=model.pure,
        objective=make("objective", objective) if isinstance(objective, (str, Mapping)) else objective,
        optimizer=config.optimizer,
        total_steps=config.steps,
        seed=config.seed,
        accumulate=config.accumulate,
        lora=config.lora,
        mesh=None if alone else mesh,
    )
    trainer.template()  # builds every part: parameters, optimizer, schedule
    return trainer


def fit(
    workdir: str | os.PathLike[str],
    model: Model,
    objective: Any,
    loader: Loader,
    config: TrainConfig,
    *,
    evaluations: Mapping[str, Loader] | None = None,
    run: Mapping[str, Any] | None = None,
    study: type | None = None,
    params: Params | None = None,
    profile: str = "",
    quiet: bool = False,
    devices: Sequence[Any] | None = None,
) -> Fitted:
    """Trains, or resumes training, until ``config.steps`` steps are done; returns at once if they are.

    Args:
      workdir: gets ``config.json``, ``metrics.jsonl`` and ``checkpoints/``; the run in it is resumed if there is one.
      model: what is trained.
      objective: a `jaxlm.objective` method, or its name.
      loader: of the global batches; ``loader.batch_size`` rows, the same on every process.
      config: the run.
      evaluations: data sets by name, each a loader with ``remainder="pad"``. Their means are logged as ``name/loss``
        and so on; the loss of the first decides which checkpoint is best.
      run: the resolved configuration of the whole study, JSON-ready, saved with the run, with ``config`` under
        ``"train"``; model and train if None.
      study: the class that `run` was made of by `to_dict`, so that a run of an earlier version, which lacked fields
        that have their defaults now, is resumed; None if there is none.
      params: model parameters to start from; None for fresh ones.
      profile: a range of steps to trace, ``"10:15"``.
      quiet: no progress on the terminal.
      devices: to run on; all by default.

    Raises:
      ConfigError: in one line, before anything compiles, for parts that do not fit each other, and for a workdir that
        cannot be written or belongs to another configuration (the differing fields are named).
      FloatingPointError: gradients were not finite for ``optimizer.skip_limit`` steps in a row.
      SystemExit: 143 after SIGTERM, once the state is saved (`jaxlm.train.preemption`).
    """
    evaluations = evaluations or {}
    run = {"model": to_dict(model.spec), "train": to_dict(config)} if run is None else run
    trainer = make_trainer(model, objective, config, devices)
    evaluators = {name: Evaluator(trainer, data) for name, data in evaluations.items()}
    require(
        loader.batch_size == config.batch_size,
        f"the loader's batch_size {loader.batch_size} is not the run's {config.batch_size}",
    )
    length = _check_rows(model.pure.writer, loader, evaluations)
    workdir, first = Path(workdir), jax.process_index() == 0
    free = tuple(f"train.{name}" for name in FREE)
    kinds = {"model": type(model.spec), "train": type(config)}

    def renew(saved: dict[str, Any]) -> dict[str, Any]:
        """A run's configuration with the fields that its version of the model, the training or the study lacked."""
        parts = {name: renewed(kind, saved[name]) for name, kind in kinds.items() if name in saved}
        return {**saved, **parts} if study is None else renewed(study, {**saved, **parts})

    if first:
        claim_workdir(workdir, run, ignore=free, renew=renew)
    agreement.everywhere(True)  # the folder is there for all
    meta = {"config_version": VERSION, "model": to_dict(model.spec), "train": to_dict(config), "run": dict(run)}
    best = next((f"{name}/loss" for name in evaluations), None)
    checkpoints = Checkpointer(workdir / CHECKPOINTS, keep=config.keep, best_metric=best)
    with checkpoints, Preemption() as preemption, Profile(workdir, profile) as tracing:
        if checkpoints.steps():
            saved = renew(check_version(checkpoints.read_meta(), VERSION, MIGRATIONS)["run"])
            check_compatible(run, saved, ignore=free)
        restored = checkpoints.restore(trainer.template())
        state = trainer.init(params) if restored is None else restored.state
        start = 0 if restored is None else restored.step
        writer = open_writers(config.writers, workdir, run, None if restored is None else start) if first else None
        places = config.batch_size * length
        flops = 3 * model_flops(model, length)
        speed = lambda rate: mfu(flops, rate, devices)
        progress = Progress(config.steps, start=start, quiet=quiet or not first, mfu=speed)
        recorder = Recorder(writer, config, places, speed)

        def evaluate(step: int, state: TrainState) -> dict[str, float]:
            scores = {f"{name}/{k}": v for name, one in evaluators.items() for k, v in one(state).items()}
            recorder.write(step, scores)
            progress.note("  ".join([f"step {step}", *(f"{name} {value:.4f}" for name, value in scores.items())]))
            return scores

        def save(step: int, state: TrainState, scores: Mapping[str, float]) -> bool:
            recorder.flush()  # lines up to a checkpoint are on file before it is
            return checkpoints.save(step, state, meta, scores)

        def evaluated(step: int) -> bool:
            """Whether the evaluation of a step is on file: a run that is told to stop saves and leaves before it."""
            on_file = first and any(line["step"] == step and best in line for line in read_jsonl(workdir / FILE))
            return bool(agreement.from_first(on_file))

        step_function = jax.jit(trainer.step, donate_argnums=0)
        make = lambda step: load(trainer.mesh, loader, step)
        try:
            if restored is not None and evaluators and due(start, config.eval_every, config.steps):
                if not evaluated(start):
                    evaluate(start, state)
            with Prefetch(make, start, stop_step=config.steps) as batches:
                for step, batch in batches:
                    with tracing.step(step, pending=state):
                        state, metrics = step_function(state, batch)
                    done = step + 1
                    recorder.add(done, metrics)
                    progress.update(done, places, recorder.latest_loss)
                    if preemption.reached(done):
                        kept = save(done, state, {}) and checkpoints.wait()
                        progress.note(f"step {done}: told to stop; {'saved' if kept else 'the save failed'}")
                        raise SystemExit(Preemption.EXIT_CODE)
                    scores: dict[str, float] = {}
                    if evaluators and due(done, config.eval_every, config.steps):
                        recorder.flush()
                        scores = evaluate(done, state)
                        recorder.restart_clock()
                    if due(done, config.save_every, config.steps):
                        save(done, state, scores)
                        recorder.restart_clock()
        finally:
            progress.close()
            if writer is not None:
                writer.close()
    return Fitted(trainer, state)


def _check_rows(spec: ModelSpec, loader: Loader, evaluations: Mapping[str, Loader]) -> int:
    """The length of the rows of training. Raises `ConfigError` if the first batches do not fit the model."""
    limit, lengths = decoder.max_positions(spec), []
    for name, data in {"training": loader, **evaluations}.items():
        tokens = data(0)["tokens"]
        lengths.append(tokens.shape[1])
        require(
            limit is None or tokens.shape[1] <= limit,
            f"rows of {tokens.shape[1]} tokens ({name}) are beyond the {limit} positions that the model's position "
            "encoding can represent",
        )
        require(
            int(tokens.max()) < spec.vocab_size,
            f"token {tokens.max()} in the {name} data is outside the model's vocabulary of {spec.vocab_size}",
        )
    return lengths[0]
