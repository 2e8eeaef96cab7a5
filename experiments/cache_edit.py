"""Editing a cached text against reading it again: what it saves, and how far the model drifts.

He et al. 2024, "Let the Code LLM Edit Itself When You Edit the Code". Byte models of a few depths are trained on text.
Each then reads a held-out text in which a span is missing, is too much, or is another; the span is put right, and the
model goes on with the rest of the text in one of three ways:

    again     the whole new text is read: what the others are measured against
    edited    `jaxlm.decode.edit.edit_cache`: keys behind the edit move, the new tokens are read
    unmoved   the same with the keys behind left at their old angles: what moving them is for

Writes to --workdir: config.json, provenance.json, results.csv (layers, seed, kind, size, way; CPU seconds of the edit
of all windows at once; tokens read of each; mean KL divergence from `again` in nats; share of equal first choices; loss
in nats) and table.txt. Finished models are kept, so an interrupted study continues where it stopped;
--replot only prints.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import flags as config_flags
from experiments import study
from experiments.extension_text import Text
from experiments.small_models import REPLOT, train
from jaxlm.cache import edit
from jaxlm.cache.full import Full
from jaxlm.core.config import Spec, renewed, require, to_dict
from jaxlm.core.types import Params
from jaxlm.data.loader import Loader
from jaxlm.data.pack import rows
from jaxlm.data.text import read
from jaxlm.decode.edit import edit_cache
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer
from jaxlm.train.workdir import claim_workdir

flags.declare_key_flag("replot")  # so that --help shows it

KINDS = ("insert", "delete", "replace")
WAYS = ("again", "edited", "unmoved")
STEPS_PER_CALL = 50


class Row(NamedTuple):
    layers: int
    seed: int
    kind: str
    size: int
    way: str
    cpu_seconds: float
    tokens: int
    kl: float
    agreement: float
    loss: float


@dataclasses.dataclass(frozen=True)
class RunConfig(Spec):
    """The whole study.

    Attributes:
      models: what is edited, with rotary positions; they differ in depth.
      source: of the text (`jaxlm.data.text`).
      context: tokens of a text after its edit; ``ahead`` more follow, by which it is judged.
      place: where in the text the edit is, 0 to 1.
      sizes: tokens that come, go, or are replaced by half as many.
      windows: how many texts are edited, at once.
      repeats: of each measurement of time, of which the median counts.
      seeds, optimizer, steps, batch_size: of training, in rows of ``context + ahead`` tokens.
    """

    models: tuple[ModelSpec, ...] = (ModelSpec(),)
    source: str = "stdlib:"
    context: int = 256
    ahead: int = 32
    place: float = 0.5
    sizes: tuple[int, ...] = (4, 32)
    windows: int = 16
    repeats: int = 3
    seeds: tuple[int, ...] = (0,)
    optimizer: Optimizer = Optimizer()
    steps: int = 1000
    batch_size: int = 16

    def check(self) -> None:
        depths = [model.depth for model in self.models]
        require(len(set(depths)) == len(depths) > 0, f"RunConfig.models: depths must differ, got {depths}")
        least = min(self.ahead - 1, self.windows, self.repeats, self.steps, self.batch_size, *self.sizes)
        require(least > 0 and self.seeds and 0 < self.place < 1, "RunConfig: sizes must be positive, 0 < place < 1")
        require(
            self.place * self.context + max(self.sizes) < self.context,
            f"RunConfig.sizes: an edit of {max(self.sizes)} tokens at {self.place} does not fit {self.context}",
        )


class Edit(NamedTuple):
    """``old`` tokens [B, L], of which ``delete`` at ``at`` give way to ``insert`` [B, n]; what comes out is natural."""

    old: np.ndarray
    at: int
    delete: int
    insert: np.ndarray


def make_edit(kind: str, size: int, text: np.ndarray, others: np.ndarray, at: int) -> Edit:
    """The edit that makes ``text`` [B, L]: the span at ``at`` was missing, or that of ``others`` [B, L] was there."""
    comes = 0 if kind == "delete" else size
    goes = {"insert": 0, "delete": size, "replace": -(-size // 2)}[kind]
    old = np.concatenate((text[:, :at], others[:, :goes], text[:, at + comes :]), 1)
    return Edit(old, at, goes, text[:, at : at + comes])


@functools.partial(jax.jit, static_argnums=0)
def _read(spec: ModelSpec, params: Params, tokens: jax.Array, state: Any) -> tuple[Any, Any]:
    """The state after these tokens, and their logits."""
    out = decoder.forward(spec, params, tokens, state=state)
    return out.state, out.logits


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _unmoved(spec: ModelSpec, at: int, delete: int, params: Params, insert: jax.Array, state: Any) -> Any:
    """The state after an edit that gives keys new positions and leaves their angles."""
    batch, size = insert.shape
    places, where = jnp.full((batch,), at), at + jnp.arange(size)[None]
    layers = tuple(
        edit.make_room(one, state["segment"], places, delete, size, lambda k, shift: k) for one in state["layers"]
    )
    after = {**state, "layers": layers}
    if size:
        after = decoder.forward(spec, params, insert, positions=where, state=after, logits=False).state
    layers = tuple(edit.close_room(one, each_row=False) for one in after["layers"])
    return {**after, "layers": layers, "position": state["position"] + size - delete, "segment": state["segment"]}


def ways(config: RunConfig, spec: ModelSpec, params: Params, text: np.ndarray, one: Edit) -> dict[str, Any]:
    """What makes the state after the new text, called without arguments; by way."""
    room = config.context + config.ahead + max(config.sizes)
    empty = decoder.init_state(spec, len(text), room, Full())
    before = _read(spec, params, jnp.asarray(one.old), empty)[0]
    model, insert = LanguageModel(spec), jnp.asarray(one.insert)
    return {
        "again": lambda: _read(spec, params, jnp.asarray(text), empty)[0],
        "edited": lambda: edit_cache(model, params, before, one.at, one.delete, one.insert)[0],
        "unmoved": lambda: _unmoved(spec, one.at, one.delete, params, insert, before),
    }


def cpu_seconds(run: Callable[[], Any], repeats: int) -> float:
    """The median of so many runs after the first, which compiles; on all cores together."""
    jax.block_until_ready(run())
    found = []
    for _ in range(repeats):
        began = time.process_time()
        jax.block_until_ready(run())
        found.append(time.process_time() - began)
    return float(np.median(found))


def compare(config: RunConfig, spec: ModelSpec, params: Params, text: Text, seed: int) -> list[Row]:
    """Every kind and size of edit on one trained model."""
    length, found = config.context, []
    windows = text.windows(length + config.ahead - 1, 2 * config.windows, length + config.ahead)
    windows, others = windows[: config.windows], windows[config.windows :]
    context, ahead = windows[:, :length], windows[:, length:]
    for kind in KINDS:
        for size in config.sizes:
            one = make_edit(kind, size, context, others, round(config.place * length))
            exact = None
            for way, run in ways(config, spec, params, context, one).items():
                logits = _read(spec, params, jnp.asarray(ahead[:, :-1]), run())[1]
                log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
                exact = log_p if exact is None else exact
                loss = -np.take_along_axis(log_p, ahead[:, 1:, None], -1).mean()
                kl = (np.exp(exact) * (exact - log_p)).sum(-1).mean()
                same = (exact.argmax(-1) == log_p.argmax(-1)).mean()
                tokens = length if way == "again" else one.insert.shape[1]
                spent = cpu_seconds(run, config.repeats)
                found.append(Row(spec.depth, seed, kind, size, way, spent, tokens, float(kl), float(same), float(loss)))
    return found


def run(config: RunConfig, workdir: Path) -> list[Row]:
    """Every model of the study that the workdir does not hold yet; returns all rows."""
    text = Text(read(config.source), ByteTokenizer())
    found = study.read(workdir, Row, missing_ok=True)
    done = {(row.layers, row.seed) for row in found}
    jobs = [(m, seed) for seed in config.seeds for m in config.models if (m.depth, seed) not in done]

    def work(job: tuple[ModelSpec, int], progress: study.Report) -> None:
        spec, seed = job
        trainer = Trainer(Decoder(spec), NextToken(), config.optimizer, config.steps)
        loader = Loader(rows(text.train, config.context + config.ahead, "pack"), config.batch_size, seed=seed)
        params = trainer.averaged(train(trainer, loader, STEPS_PER_CALL, progress.steps))
        found.extend(compare(config, spec, decoder.unstack(params), text, seed))
        study.save(found, workdir, Row)

    # One at a time: the CPU seconds that are measured are those of the process.
    study.run(jobs, work, workdir, steps=config.steps * len(jobs), workers=1)
    return found


def table(found: Sequence[Row]) -> str:
    """Means over seeds, a line for each model, edit and way."""
    lines = [f"{'layers':>6}  {'edit':<11}  {'way':<8}{'CPU s':>8}{'tokens':>8}{'KL':>10}{'agree':>8}{'loss':>8}"]
    for layers in sorted({row.layers for row in found}):
        for kind in KINDS:
            for size in sorted({row.size for row in found}):
                for way in WAYS:
                    same = [r for r in found if (r.layers, r.kind, r.size, r.way) == (layers, kind, size, way)]
                    if same:
                        seconds, tokens, kl, agreement, loss = np.mean([row[5:] for row in same], axis=0)
                        lines.append(
                            f"{layers:>6}  {kind + ' ' + str(size):<11}  {way:<8}{seconds:>8.3f}{tokens:>8.0f}"
                            f"{kl:>10.5f}{agreement:>8.3f}{loss:>8.3f}"
                        )
    return "\n".join(lines)


def main(config: RunConfig, workdir: Path) -> None:
    if REPLOT.value:
        found = study.read(workdir, Row)
    else:
        claim_workdir(workdir, to_dict(config), renew=functools.partial(renewed, type(config)))
        found = run(config, workdir)
    text = table(found)
    (workdir / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    config_flags.run(main, default="configs/cache_edit.py:study")
