"""Our speed beside that of the peers that happen to be installed, in one run.

    python -m experiments.benchmark --suite=train_step --workdir=runs/bench

All contestants live in this process and take turns, a few steps each, round after round, so that whatever else the
machine does weighs on all of them alike. Wall time and CPU-seconds per step are medians over rounds, with ratios of
medians to ours; compare CPU-seconds first on a shared machine. Writes <suite>.json with command, commit, hardware and
versions.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: idle threads must not burn what is billed

from experiments.host_memory import keep_freed_memory  # noqa: E402

keep_freed_memory()  # for all contestants, as `experiments.flags.run` does

import importlib.util  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Protocol  # noqa: E402

import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from experiments import provenance  # noqa: E402
from jaxlm.core.errors import ConfigError, choose  # noqa: E402
from jaxlm.model.describe import forward_flops  # noqa: E402

SUITE = flags.DEFINE_string("suite", "train_step", "what to measure")
WORKDIR = flags.DEFINE_string("workdir", "runs/bench", "folder for the JSON")
ROUNDS = flags.DEFINE_integer("rounds", 10, "rounds; each contestant runs once a round", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 3, "steps of a contestant in a round", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", 2, "threads of the peers", lower_bound=1)

SHAPE = {"layers": 4, "width": 256, "heads": 4, "vocab": 512, "length": 256, "batch": 16}
RATE = 1e-3


class Contestant(Protocol):
    """Something that can run steps."""

    name: str

    def run(self, steps: int) -> list[float]:
        """Runs the next steps to their end and returns their losses."""
        ...

    def memory(self) -> float | None:
        """Bytes that a step needs beyond its parameters and optimizer state, where that is known."""
        ...


class Rows:
    """Random tokens with a structure to learn (each depends on the one before); row i is always the same."""

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: x[0] for name, x in self.batch(np.array([index])).items()}

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        noise = np.stack(
            [np.random.Generator(np.random.Philox(int(i))).integers(0, 8, SHAPE["length"] + 1) for i in index]
        )
        text = (np.cumsum(noise, axis=1) % SHAPE["vocab"]).astype(np.int32)
        return {"tokens": text[:, :-1], "targets": text[:, 1:], "weights": np.ones(text[:, 1:].shape, np.float32)}


class Ours:
    """The trainer as `jaxlm.train.loop` runs it: loader, prefetch, compiled step, metrics fetched and written."""

    name = "jaxlm"

    def __init__(self) -> None:
        import jax

        from jaxlm.data.loader import Loader
        from jaxlm.data.prefetch import Prefetch
        from jaxlm.ffn.mlp import Mlp
        from jaxlm.mixer.attention import Attention
        from jaxlm.model.language_model import LanguageModel
        from jaxlm.model.spec import Block, Group, ModelSpec
        from jaxlm.objective.next_token import NextToken
        from jaxlm.position.learned import Learned
        from jaxlm.train.config import TrainConfig
        from jaxlm.train.evaluate import load
        from jaxlm.train.loop import make_trainer
        from jaxlm.train.metrics import open_writers
        from jaxlm.train.optimizer import Optimizer
        from jaxlm.train.recorder import Recorder
        from jaxlm.train.schedule import Schedule

        block = Block(mixer=Attention(heads=SHAPE["heads"], position=Learned(SHAPE["length"])), ffn=Mlp())
        spec = ModelSpec(
            SHAPE["vocab"], SHAPE["width"], (Group((block,), SHAPE["layers"]),), tied_head=True, remat="none"
        )
        optimizer = Optimizer(schedule=Schedule("constant", RATE, warmup=0))
        config = TrainConfig(steps=10**6, batch_size=SHAPE["batch"], optimizer=optimizer)
        self.trainer = make_trainer(LanguageModel(spec), NextToken(), config, jax.devices()[:1])
        self.state = self.trainer.init()
        self.start = jax.device_get(self.state.params)
        self.loader = Loader(Rows(), SHAPE["batch"])
        self._batches = iter(Prefetch(lambda step: load(None, self.loader, step)))
        self._step = jax.jit(self.trainer.step, donate_argnums=0)
        self._folder = tempfile.TemporaryDirectory()
        writer = open_writers((), self._folder.name, {})
        self._recorder = Recorder(writer, config, SHAPE["batch"] * SHAPE["length"], lambda rate: None)

    def run(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            step, batch = next(self._batches)
            self.state, metrics = self._step(self.state, batch)
            self._recorder.add(step + 1, metrics)
            losses.append(metrics["loss"])
        return [float(loss) for loss in losses]

    def memory(self) -> float:
        from jaxlm.train.evaluate import load

        compiled: Any = self._step.lower(self.state, load(None, self.loader, 0)).compile()
        return float(compiled.memory_analysis().temp_size_in_bytes)


class Torch:
    """The same model, optimizer and data in PyTorch; `experiments.peers.torch_gpt`."""

    def __init__(self, ours: Ours, compiled: bool):
        import torch

        from experiments.peers import torch_gpt

        torch.set_num_threads(THREADS.value)
        self.name = "torch compiled" if compiled else "torch eager"
        self._torch, self._loader, self._at = torch, ours.loader, 0
        self.model = torch_gpt.Gpt(SHAPE["vocab"], SHAPE["width"], SHAPE["heads"], SHAPE["layers"], SHAPE["length"])
        self.model.take(ours.start)
        self._call = torch.compile(self.model) if compiled else self.model
        self._optimizer = torch_gpt.optimizer(self.model, RATE)

    def run(self, steps: int) -> list[float]:
        torch, losses = self._torch, []
        for _ in range(steps):
            batch = self._loader(self._at)
            self._at += 1
            tokens, targets = (torch.from_numpy(batch[name]).long() for name in ("tokens", "targets"))
            loss = self._call(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return losses

    def memory(self) -> None:
        return None


def train_step() -> dict[str, Any]:
    """A training step of a small decoder, ours beside PyTorch's."""
    ours = Ours()
    contestants: list[Contestant] = [ours]
    if importlib.util.find_spec("torch"):
        contestants += [Torch(ours, compiled=False), Torch(ours, compiled=True)]
    else:
        print("PyTorch is not installed (pip install 'jaxlm[torch]'): ours alone")
    results = race(contestants)
    first = results["contestants"]["jaxlm"]["first_losses"]
    for name, entry in results["contestants"].items():
        entry["largest_loss_difference"] = max(abs(a - b) for a, b in zip(entry["first_losses"], first, strict=True))
        if entry["largest_loss_difference"] > 1e-3 * max(first):
            raise ConfigError(
                f"{name} is not the same model: its first losses are {entry['first_losses']}, ours {first}"
            )
    flops = 3 * forward_flops(ours.trainer.model.spec, SHAPE["length"]) * SHAPE["batch"] * SHAPE["length"]
    rate = matmul_rate()
    return {
        "shape": SHAPE,
        "dtype": "float32",
        "flops_per_step": flops,
        "matmul_flops_per_cpu_second": rate,
        "cpu_seconds_at_matmul_rate": flops / rate,
        **results,
    }


def matmul_rate() -> float:
    """FLOPs per CPU-second of one large float32 product, the ceiling for all contestants on this machine."""
    size, rates = 2048, []
    x = np.ones((size, size), np.float32)
    for _ in range(8):
        used = time.process_time()
        np.matmul(x, x)
        rates.append(2 * size**3 / (time.process_time() - used))
    return statistics.median(rates)


SUITES: dict[str, Callable[[], dict[str, Any]]] = {"train_step": train_step}


def race(contestants: list[Contestant]) -> dict[str, Any]:
    """Rounds of `STEPS` steps each, in turns; the first round, which compiles, is not counted."""
    first = {c.name: c.run(STEPS.value) for c in contestants}
    wall: dict[str, list[float]] = {c.name: [] for c in contestants}
    cpu: dict[str, list[float]] = {c.name: [] for c in contestants}
    for i in range(ROUNDS.value):
        for c in contestants:
            began, used = time.perf_counter(), time.process_time()
            c.run(STEPS.value)
            cpu[c.name].append((time.process_time() - used) / STEPS.value)
            wall[c.name].append((time.perf_counter() - began) / STEPS.value)
        print(f"\rround {i + 1}/{ROUNDS.value}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    base = contestants[0].name
    median = statistics.median
    entries = {
        c.name: {
            "wall_seconds": median(wall[c.name]),
            "cpu_seconds": median(cpu[c.name]),
            "wall_spread": [min(wall[c.name]), max(wall[c.name])],
            "cpu_spread": [min(cpu[c.name]), max(cpu[c.name])],
            "ours_over_this_wall": median(wall[base]) / median(wall[c.name]),
            "ours_over_this_cpu": median(cpu[base]) / median(cpu[c.name]),
            "temporary_bytes": c.memory(),
            "first_losses": first[c.name],
        }
        for c in contestants
    }
    return {"rounds": ROUNDS.value, "steps_per_round": STEPS.value, "threads": THREADS.value, "contestants": entries}


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    rows = [
        f"{'per step':<16} {'wall ms':>8} {'CPU ms':>8} {'ours/this wall':>15} {'ours/this CPU':>14} {'temp MB':>8}"
    ]
    for name, e in results["contestants"].items():
        memory = "-" if e["temporary_bytes"] is None else f"{e['temporary_bytes'] / 1e6:.0f}"
        rows.append(
            f"{name:<16} {1e3 * e['wall_seconds']:>8.0f} {1e3 * e['cpu_seconds']:>8.0f} "
            f"{e['ours_over_this_wall']:>15.2f} {e['ours_over_this_cpu']:>14.2f} {memory:>8}"
        )
    rows.append(
        f"{results['flops_per_step'] / 1e9:.0f} GFLOP per step; at this machine's rate for one large product, "
        f"{results['matmul_flops_per_cpu_second'] / 1e9:.0f} GFLOP per CPU-second, "
        f"that is {1e3 * results['cpu_seconds_at_matmul_rate']:.0f} CPU ms"
    )
    return "\n".join(rows) + "\n"


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        if len(argv) > 1:
            raise ConfigError(f"unexpected argument {argv[1]!r}; everything is a flag, written --name=value")
        results = SUITES[choose("suite", SUITE.value, SUITES)]()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    folder = Path(WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    text = table(results)
    (folder / f"{SUITE.value}.txt").write_text(text, encoding="utf-8")
    record = {**provenance.collect(), "suite": SUITE.value, **results}
    (folder / f"{SUITE.value}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    app.run(main)
