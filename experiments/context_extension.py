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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import checkpoints, study
from experiments import context_extension_report as report
from experiments import extension_streaming as streaming
from experiments import flags as config_flags
from experiments.extension_text import Planted, Text
from experiments.small_models import REPLOT, train
from jaxlm.core.config import Spec, make, require, slot, to_dict
from jaxlm.core.errors import choose
from jaxlm.core.params import initialize, map_specs
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

TAIL = 32  # last positions, whose loss is reported by itself
PARTS = 8  # equal parts of a window, for the loss by position
STEPS_PER_CALL = 50
STREAMS = ("streaming", "window")  # what is read as an endless stream


@dataclasses.dataclass(frozen=True)
class Base(Spec):
    """A model trained from scratch at L.

    Attributes:
      label: its name in tables, figures and results.csv.
      model: what is trained.
    """

    label: str = "rotary"
    model: ModelSpec = ModelSpec(vocab_size=ByteTokenizer().vocab_size)


@dataclasses.dataclass(frozen=True)
class Tuned(Spec):
    """The first base, trained further with another position encoding, and read with it.

    Attributes:
      label: its name.
      position: the encoding; what it learns starts fresh.
      lengths: of rows, in stages of equally many steps, the tokens of a step being the same: a curriculum if several.
      optimizer: of these steps; the study's ``tune_optimizer`` if None.
    """

    label: str = "naive"
    position: Any = slot("position", "rotary")
    lengths: tuple[int, ...] = (64,)
    optimizer: Optimizer | None = None

    def check(self) -> None:
        require(self.lengths and min(self.lengths) > 1, f"Tuned.lengths: expected positive lengths, got {self.lengths}")


@dataclasses.dataclass(frozen=True)
class RunConfig(Spec):
    """The whole study.

    Attributes:
      bases: models trained from scratch; the first is the one that is extended, and has rotary positions.
      methods: training-free ways to a longer context, of `jaxlm.model.extend`; empty for all.
      tuned: fine-tuned ways.
      checkpoint: a folder to read the methods on instead of training; then there are no bases and no tuned arms.
      source: text, see `jaxlm.data.text`; training reads its train part and the tests its validation part.
      original: L.
      multiples: of L, at which models are read.
      seeds: of initial values and data order.
      steps, batch_tokens, optimizer: of the bases; ``tune_steps`` and ``tune_optimizer`` of the tuned arms.
      needles: the share of training rows that hide a passkey and ask for it at the end.
      windows: of text per length; fewer at lengths where ``eval_tokens`` tokens are fewer.
      passkeys: rows per length and depth, with ``depths`` depths.
      decode_steps: timed steps of decoding, at the shortest and the longest length; 0 for none.
      stream: multiple of L up to which StreamingLLM and a plain window read one token at a time through their caches,
        ``stream_rows`` texts together; 0 for none.
      workers: bases trained at the same time; 0 for one per core on a CPU and one elsewhere.
    """

    bases: tuple[Base, ...] = (Base(),)
    methods: tuple[str, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    checkpoint: str = ""
    source: str = "stdlib:"
    original: int = 64
    multiples: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    seeds: tuple[int, ...] = (0,)
    steps: int = 1000
    batch_tokens: int = 1024
    optimizer: Optimizer = Optimizer()
    tune_steps: int = 300
    tune_optimizer: Optimizer = Optimizer()
    needles: float = 0.0
    windows: int = 64
    eval_tokens: int = 65_536
    passkeys: int = 32
    depths: int = 5
    decode_steps: int = 64
    stream: int = 0
    stream_rows: int = 16
    workers: int = 0

    def check(self) -> None:
        arms = [base.label for base in self.bases] + [arm.label for arm in self.tuned] + list(self.ways)
        require(len(set(arms)) == len(arms), f"RunConfig: labels of bases, tuned arms and methods must differ: {arms}")
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"RunConfig.seeds: expected distinct seeds, got {self.seeds}"
        )
        require(self.original >= TAIL, f"RunConfig.original: expected at least {TAIL} tokens, got {self.original}")
        require(self.multiples[:1] == (1,), f"RunConfig.multiples: expected 1 first, got {self.multiples}")
        require(0 <= self.needles <= 1, f"RunConfig.needles: expected a share in [0, 1], got {self.needles}")
        sizes = (self.steps, self.tune_steps, self.windows, self.passkeys, self.depths, *self.multiples)
        require(min(sizes) > 0, "RunConfig: sizes must be positive")
        for method in self.methods:
            choose("extension method", method, extend.METHODS)
        for base in () if self.checkpoint else self.bases:
            decoder.param_specs(base.model)
            limit = decoder.max_positions(base.model)
            require(
                limit is None or limit >= max(self.lengths) + self.decode_steps + 1,
                f"base {base.label!r} represents {limit} positions; the longest window has {max(self.lengths)}",
            )

    @property
    def ways(self) -> tuple[str, ...]:
        """The training-free methods, without the model as it is."""
        return tuple(m for m in self.methods or extend.METHODS if m != "none")

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.original * n for n in self.multiples)


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is read: a model for each length, and its parameters.

    Attributes:
      label: its name.
      model: of a multiple of L.
      params: for all of these; None where only the cost is asked for.
      method: the training-free method it is, which chooses the cache.
    """

    label: str
    model: Any
    params: Any
    method: str = "none"


@functools.partial(jax.jit, static_argnums=0)
def losses(model: Decoder, params: Params, rows_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 nats and boolean first choices that are right, both [B, L - 1], of rows [B, L] of tokens."""
    tokens = rows_BL[:, :-1]
    drawn = model.draw(jax.random.key(0), jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape))
    hidden = model(params, tokens, positions=drawn, ordered=True, logits=False).hidden

    def row(x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = model.unembed(params, x[0])
        chosen = jnp.take_along_axis(logits, x[1][:, None], -1)[:, 0]
        return jax.nn.logsumexp(logits, -1) - chosen, jnp.argmax(logits, -1) == x[1]

    return jax.lax.map(row, (hidden, rows_BL[:, 1:]))


def batch_size(config: RunConfig, length: int) -> int:
    """Rows that are read at once; one number for all uses, so that each model compiles once for each length."""
    return max(1, min(config.windows, config.eval_tokens // 4 // length))


def in_batches(model: Decoder, params: Params, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`losses` of any number of rows, ``size`` at a time."""
    padded = np.pad(rows, ((0, -len(rows) % size), (0, 0)))
    parts = [losses(model, params, padded[i : i + size]) for i in range(0, len(padded), size)]
    found, right = (np.concatenate([np.asarray(part[i]) for part in parts])[: len(rows)] for i in range(2))
    return found, right


def read_losses(config: RunConfig, arm: Arm, text: Text, seed: int) -> Iterator[report.Row]:
    """The loss by position, at every length."""
    for multiple, length in zip(config.multiples, config.lengths, strict=True):
        count = max(1, min(config.windows, config.eval_tokens // length))
        windows = text.windows(length, count, max(config.lengths))
        model = Decoder(arm.model(multiple).spec)
        found, _ = in_batches(model, arm.params, windows, batch_size(config, length))
        yield report.Row(arm.label, seed, length, "all", float(found.mean()))
        yield report.Row(arm.label, seed, length, "tail", float(found[:, -TAIL:].mean()))
        for part, chunk in enumerate(np.array_split(found, PARTS, 1)):
            yield report.Row(arm.label, seed, length, f"{part + 1}/{PARTS}", float(chunk.mean()))


def read_passkeys(config: RunConfig, arm: Arm, text: Text, seed: int) -> Iterator[report.Passkey]:
    """The share of passkey symbols found, by depth, at every length."""
    for multiple, length in zip(config.multiples, config.lengths, strict=True):
        count = max(1, min(config.passkeys, config.eval_tokens // 4 // length))
        windows = text.windows(length, count, max(config.lengths))
        draws = np.random.default_rng(length)
        depths = np.repeat(np.arange(config.depths), count)
        at = lambda depth: (depth / max(1, config.depths - 1),)
        hidden = [text.needle.hide(windows[i % count], at(depth), draws) for i, depth in enumerate(depths)]
        model = Decoder(arm.model(multiple).spec)
        _, right = in_batches(model, arm.params, np.stack(hidden), batch_size(config, length))
        found = right[:, -text.needle.size :].mean(1)
        for depth in range(config.depths):
            yield report.Passkey(arm.label, seed, length, depth, count, float(found[depths == depth].mean()))


def read_streams(config: RunConfig, arm: Arm, text: Text, seed: int) -> list[report.Stream]:
    """What a method of constant memory does over a long stream."""
    if not config.stream or arm.method not in STREAMS:
        return []
    longest = config.stream * config.original
    rows = text.windows(longest, config.stream_rows, longest)
    cache = make("cache", extend.cache(arm.method, config.original))
    model = Decoder(arm.model(config.stream).spec)
    return streaming.rows_of(arm.label, seed, model, arm.params, rows, cache, config.original)


def measure_decoding(config: RunConfig, arms: Sequence[Arm], results: Results) -> None:
    """What a step of one token costs each arm that is not measured yet, one after the other, alone on the machine.

    Parameters cost the same whatever their values, so any will do where the arm has none.
    """
    done = {row.arm for row in results.decoding}
    for arm in arms if config.decode_steps else ():
        if arm.label in done:
            continue
        rows = []
        for multiple in sorted({config.multiples[0], config.multiples[-1]}):
            length = config.original * multiple
            spec = arm.model(multiple).spec
            params = arm.params or map_specs(lambda _, one: jnp.full(one.full_shape, 0.01), decoder.param_specs(spec))
            cache = make("cache", extend.cache(arm.method, config.original))
            seconds, size = decoding_cost(Decoder(spec), params, length, config.decode_steps, cache)
            rows.append(report.Decoding(arm.label, length, 1000 * seconds, size))
        results.add(decoding=rows)


def decoding_cost(model: Decoder, params: Params, context: int, steps: int, cache: Any) -> tuple[float, int]:
    """Median seconds of a step of one token after ``context`` of them, and bytes of the layers' state."""
    length = context + steps + 1  # declared, as for a text of known length: keys are then turned once
    state = decoder.init_state(model.spec, 1, length, cache)
    params = decoder.unstack(params)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params: Params, state: Any, tokens: jax.Array) -> Any:
        out = model(params, tokens, state=state, length=length, logits=False)
        return out.state, out.hidden[0, -1, 0]

    for piece in np.array_split(np.zeros((1, context), np.int32), max(1, context // 512), 1):
        state, _ = step(params, state, piece)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(params, state, np.zeros((1, 1), np.int32)))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:])), sum(x.nbytes for x in jax.tree.leaves(state["layers"]))


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
    chunk = jax.jit(functools.partial(jax.lax.scan, trainer.step), donate_argnums=0)
    state = trainer.init(params, seed=seed)
    for stage, length in enumerate(stages):
        loader = Loader(rows(text.train, length, "pack"), max(1, config.batch_tokens // length), seed=seed)
        batches = Planted(loader, text.needle, config.needles, first)
        until = steps * (stage + 1) // len(stages)
        state = train(trainer, chunk, batches, STEPS_PER_CALL, progress.steps, state=state, until=until)
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
        found: Any = [study.read(workdir, kind, missing_ok, file) for kind, file in report.FILES.items()]
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
        claim_workdir(workdir, to_dict(config))
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
