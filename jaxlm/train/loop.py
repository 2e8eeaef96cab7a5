"""The loop around `jaxlm.train.step`: data, metrics, evaluation, checkpoints, resuming, and being told to stop.

A run is a function of its configuration. Batches are a function of (seed, step), all else that changes is in the
`TrainState`, and ``metrics.jsonl`` is cut back to the step a run resumes from: killed and started again, it ends with
the same bits and the same lines as one left alone. Figures of time, which cannot repeat, are named ``time/...``.

The device never waits for the host: a step is dispatched while the two before it still compute, and its metrics are
fetched only where a line is due, one step late.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxlm.core.config import require, to_dict
from jaxlm.core.types import Params
from jaxlm.data.loader import Loader
from jaxlm.data.prefetch import Prefetch
from jaxlm.dist.mesh import make_mesh
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.model.describe import forward_flops
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec
from jaxlm.train import agreement
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.config import FREE, MIGRATIONS, VERSION, TrainConfig
from jaxlm.train.evaluate import Evaluator, load
from jaxlm.train.load import CHECKPOINTS
from jaxlm.train.metrics import Writer, open_writers
from jaxlm.train.mfu import mfu
from jaxlm.train.preemption import Preemption
from jaxlm.train.profile import Profile
from jaxlm.train.progress import Progress
from jaxlm.train.resume import check_compatible, check_version
from jaxlm.train.step import Trainer, TrainState
from jaxlm.train.workdir import claim_workdir

AHEAD = 2  # steps dispatched before an earlier one is waited for: keeps the device busy, and clock and signals honest


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The end of a run: its pure functions and its last state."""

    trainer: Trainer
    state: TrainState

    @property
    def params(self) -> Params:
        """The model's parameters, averaged where averages are kept, adapters merged."""
        return self.trainer.averaged(self.state)


def make_trainer(
    model: LanguageModel, objective: Any, config: TrainConfig, devices: Sequence[jax.Device] | None = None
) -> Trainer:
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
        model=Decoder(model.spec),
        objective=objective,
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
    model: LanguageModel,
    objective: Any,
    loader: Loader,
    config: TrainConfig,
    *,
    evaluations: Mapping[str, Loader] | None = None,
    run: Mapping[str, Any] | None = None,
    params: Params | None = None,
    profile: str = "",
    quiet: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Fitted:
    """Trains, or resumes training, until ``config.steps`` steps are done; returns at once if they are.

    Args:
      workdir: gets ``config.json``, ``metrics.jsonl`` and ``checkpoints/``; the run in it is resumed if there is one.
      model: what is trained.
      objective: a `jaxlm.objective` method.
      loader: of the global batches; ``loader.batch_size`` rows, the same on every process.
      config: the run.
      evaluations: data sets by name, each a loader with ``remainder="pad"``. Their means are logged as ``name/loss``
        and so on; the loss of the first decides which checkpoint is best.
      run: the resolved configuration of the whole study, JSON-ready, saved with the run, with ``config`` under
        ``"train"``; model and train if None.
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
    length = _check_rows(model.spec, loader, evaluations)
    workdir, first = Path(workdir), jax.process_index() == 0
    free = tuple(f"train.{name}" for name in FREE)
    if first:
        claim_workdir(workdir, run, ignore=free)
    agreement.everywhere(True)  # the folder is there for all
    meta = {"config_version": VERSION, "model": to_dict(model.spec), "train": to_dict(config), "run": dict(run)}
    best = next((f"{name}/loss" for name in evaluations), None)
    checkpoints = Checkpointer(workdir / CHECKPOINTS, keep=config.keep, best_metric=best)
    with checkpoints, Preemption() as preemption, Profile(workdir, profile) as tracing:
        if checkpoints.steps():
            check_compatible(run, check_version(checkpoints.read_meta(), VERSION, MIGRATIONS)["run"], ignore=free)
        restored = checkpoints.restore(trainer.template())
        state = trainer.init(params) if restored is None else restored.state
        start = 0 if restored is None else restored.step
        if start >= config.steps:
            return Fitted(trainer, state)
        writer = open_writers(config.writers, workdir, run, None if restored is None else start) if first else None
        places = config.batch_size * length
        flops = 3 * forward_flops(model.spec, length)
        speed = lambda rate: mfu(flops, rate, devices)
        progress = Progress(config.steps, start=start, quiet=quiet or not first, mfu=speed)
        recorder = Recorder(writer, config, places, speed)
        step_function = jax.jit(trainer.step, donate_argnums=0)
        make = lambda step: load(trainer.mesh, loader, step)
        try:
            with Prefetch(make, start, stop_step=config.steps) as batches:
                for step, batch in batches:
                    with tracing.step(step, pending=state):
                        state, metrics = step_function(state, batch)
                    done = step + 1
                    recorder.add(done, metrics)
                    progress.update(done, places, recorder.latest_loss)
                    stop = preemption.reached(done)
                    scores: dict[str, float] = {}
                    if not stop and _due(done, config.eval_every, config.steps):
                        recorder.flush()
                        for name, evaluator in evaluators.items():
                            scores |= {f"{name}/{metric}": value for metric, value in evaluator(state).items()}
                        recorder.write(done, scores)
                        recorder.restart_clock()
                        if scores:
                            progress.note("  ".join([f"step {done}", *(f"{k} {v:.4f}" for k, v in scores.items())]))
                    if stop or _due(done, config.save_every, config.steps):
                        recorder.flush()  # lines up to a checkpoint are on file before it is
                        checkpoints.save(done, state, meta, scores)
                        recorder.restart_clock()
                    if stop:
                        checkpoints.wait()
                        progress.note(f"step {done}: told to stop; saved, and the same command continues from here")
                        raise SystemExit(Preemption.EXIT_CODE)
        finally:
            progress.close()
            if writer is not None:
                writer.close()
    return Fitted(trainer, state)


class Recorder:
    """Writes the metrics of log steps, fetched when a later step is already under way, and watches for skipped steps.

    Args:
      writer: where to; None on all processes but the first.
      config: of the run.
      places: of a batch, for the rates.
      speed: from tokens per second to the utilisation of the chips, or to None.
    """

    def __init__(self, writer: Writer | None, config: TrainConfig, places: int, speed: Any):
        self._writer, self._config, self._places, self._speed = writer, config, places, speed
        self._waiting: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._latest: jax.Array | None = None
        self._since: float | None = None  # None until the step that compiles is over
        self._steps = 0

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Notes a step that was dispatched. Raises `FloatingPointError` if the run is stuck."""
        if self._waiting and _due(self._waiting[-1][0], self._config.log_every, self._config.steps):
            self.flush()
        self._waiting.append((step, metrics))
        if len(self._waiting) > AHEAD:
            jax.block_until_ready(self._waiting[-1 - AHEAD][1])
            self._latest = self._waiting[-1 - AHEAD][1]["loss"]
        if self._since is None:
            self.restart_clock()
        else:
            self._steps += 1

    def flush(self) -> None:
        """Fetches and writes all that is due. Raises `FloatingPointError` if the run is stuck."""
        waiting, self._waiting = self._waiting, []
        for step, metrics in waiting:
            due = _due(step, self._config.log_every, self._config.steps)
            values = jax.device_get(dict(metrics) if due else {"skipped_in_a_row": metrics["skipped_in_a_row"]})
            if due:
                self._latest = values["loss"]
                self.write(step, {name: float(value) for name, value in values.items()} | self._rates())
            self._config.optimizer.stop_if_stuck(int(values["skipped_in_a_row"]), step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None and values:
            self._writer.write(step, values)

    def latest_loss(self) -> float:
        """Of the newest step that is known to be over, or the first one."""
        return float(self._waiting[0][1]["loss"] if self._latest is None else self._latest)

    def restart_clock(self) -> None:
        """Leaves out of the rates what came before: compiling, evaluating, saving."""
        self._since, self._steps = time.monotonic(), 0

    def _rates(self) -> dict[str, float]:
        steps, since = self._steps, self._since
        if since is None or steps == 0:
            return {}
        seconds = time.monotonic() - since
        self.restart_clock()
        rate = steps * self._places / seconds
        utilisation = self._speed(rate)
        rates = {"time/seconds_per_step": seconds / steps, "time/tokens_per_second": rate}
        return rates if utilisation is None else rates | {"time/mfu": utilisation}


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _check_rows(spec: ModelSpec, loader: Loader, evaluations: Mapping[str, Loader]) -> int:
    """The length of the rows of training. Raises `ConfigError` if a first row of the data does not fit the model."""
    limit, lengths = decoder.max_positions(spec), []
    for name, data in {"training": loader, **evaluations}.items():
        tokens = data(0, slice(0, 1))["tokens"]
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
