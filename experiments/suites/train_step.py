"""A training step of a small decoder, ours beside PyTorch's, eager and compiled: same model, optimizer and data."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from experiments.race import Contestant, race
from experiments.race import table as race_table
from jaxlm.core.errors import ConfigError
from jaxlm.model.describe import forward_flops

SHAPE = {"layers": 4, "width": 256, "heads": 4, "vocab": 512, "length": 256, "batch": 16}
RATE = 1e-3


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

    def __init__(self, ours: Ours, compiled: bool, threads: int):
        import torch

        from experiments.peers import torch_gpt

        torch.set_num_threads(threads)
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


def run(rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """The race, once equal first losses have shown that all run the same model."""
    ours = Ours()
    contestants: list[Contestant] = [ours]
    if importlib.util.find_spec("torch"):
        contestants += [Torch(ours, compiled=False, threads=threads), Torch(ours, compiled=True, threads=threads)]
    else:
        print("PyTorch is not installed (pip install 'jaxlm[torch]'): ours alone")
    entries, losses = race(contestants, rounds, steps)
    first = losses["jaxlm"]
    for name, entry in entries.items():
        entry["first_losses"] = losses[name]
        entry["largest_loss_difference"] = max(abs(a - b) for a, b in zip(entry["first_losses"], first, strict=True))
        if entry["largest_loss_difference"] > 1e-3 * max(first):
            raise ConfigError(
                f"{name} is not the same model: its first losses are {entry['first_losses']}, ours {first}"
            )
    flops = 3 * forward_flops(ours.trainer.model.writer, SHAPE["length"]) * SHAPE["batch"] * SHAPE["length"]
    rate = matmul_rate()
    return {
        "shape": SHAPE,
        "dtype": "float32",
        "flops_per_step": flops,
        "matmul_flops_per_cpu_second": rate,
        "cpu_seconds_at_matmul_rate": flops / rate,
        "rounds": rounds,
        "steps_per_round": steps,
        "threads": threads,
        "contestants": entries,
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


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = race_table(
        "per step",
        results["contestants"],
        {
            "wall ms": lambda e: f"{1e3 * e['wall_seconds']:.0f}",
            "CPU ms": lambda e: f"{1e3 * e['cpu_seconds']:.0f}",
            "ours/this wall": lambda e: f"{e['ours_over_this_wall']:.2f}",
            "ours/this CPU": lambda e: f"{e['ours_over_this_cpu']:.2f}",
            "temp MB": lambda e: "-" if e["temporary_bytes"] is None else f"{e['temporary_bytes'] / 1e6:.0f}",
        },
    )
    lines.append(
        f"{results['flops_per_step'] / 1e9:.0f} GFLOP per step; at this machine's rate for one large product, "
        f"{results['matmul_flops_per_cpu_second'] / 1e9:.0f} GFLOP per CPU-second, "
        f"that is {1e3 * results['cpu_seconds_at_matmul_rate']:.0f} CPU ms"
    )
    return "\n".join(lines) + "\n"
