"""Greedy generation by a small Llama, ours beside transformers', one thread each, the same weights, the same tokens.

The process is bound to one processor and XLA told so before either library loads: work is compared, not threads.
"""

from __future__ import annotations

import importlib.util
import os
import sys

if "jax" not in sys.modules:  # in a process of its own; tests and pages that look at the suite keep theirs as it is
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

import tempfile  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments.race import Contestant, race  # noqa: E402
from experiments.race import table as race_table  # noqa: E402
from jaxlm.core.errors import ConfigError  # noqa: E402
from jaxlm.decode.generate import generate  # noqa: E402
from jaxlm.ffn.glu import Glu  # noqa: E402
from jaxlm.interop.save import save_hf  # noqa: E402
from jaxlm.mixer.attention import Attention  # noqa: E402
from jaxlm.model import language_model  # noqa: E402
from jaxlm.model.spec import Block, Group, ModelSpec  # noqa: E402

SHAPE = {"layers": 4, "width": 256, "heads": 4, "hidden": 1024, "vocab": 512}
PROMPT, NEW = 64, 256
BATCHES = (1, 8)
CACHE = {"name": "full", "args": {"chunk": 32}}  # that of transformers grows by each token
GAIN = 3.0  # of all matrices: at the usual initial scale the likeliest token hardly leads, and float noise would choose


class Ours:
    """`jaxlm.generate`."""

    name = "jaxlm"

    def __init__(self, model: language_model.LanguageModel, params: Any, prompt: np.ndarray):
        self._arguments = model, params, prompt, NEW

    def run(self, steps: int) -> list[np.ndarray]:
        return [np.asarray(generate(*self._arguments, cache=CACHE)) for _ in range(steps)]

    def memory(self) -> None:
        return None


class Transformers:
    """`model.generate` of transformers on our export of the model."""

    name = "transformers"

    def __init__(self, model: language_model.LanguageModel, params: Any, prompt: np.ndarray):
        from experiments.peers import transformers_generate

        with tempfile.TemporaryDirectory() as folder:
            save_hf(model, params, folder)
            self._model = transformers_generate.load(folder, threads=1)
        self._prompt, self._greedy = prompt, transformers_generate.greedy

    def run(self, steps: int) -> list[np.ndarray]:
        return [self._greedy(self._model, self._prompt, NEW) for _ in range(steps)]

    def memory(self) -> None:
        return None


def run(rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """A race for each batch size; raises `ConfigError` if the two libraries do not generate the same tokens."""
    block = Block(mixer=Attention(heads=SHAPE["heads"]), ffn=Glu(hidden=SHAPE["hidden"]))
    spec = ModelSpec(SHAPE["vocab"], SHAPE["width"], (Group((block,), SHAPE["layers"]),))
    model = language_model.LanguageModel(spec)
    params = jax.tree.map(
        lambda p: p * GAIN if p.ndim > 2 else p, jax.device_get(language_model.init(model, jax.random.key(0)))
    )
    peers = [name for name in ("torch", "transformers") if importlib.util.find_spec(name)]
    if len(peers) < 2:
        print("transformers and torch are not both installed (pip install 'jaxlm[torch]'): ours alone")
    races: dict[str, Any] = {}
    for batch in BATCHES:
        prompt = np.random.default_rng(batch).integers(0, SHAPE["vocab"], (batch, PROMPT))
        contestants: list[Contestant] = [Ours(model, jax.device_put(params), prompt)]
        contestants += [Transformers(model, params, prompt)] if len(peers) == 2 else []
        entries, texts = race(contestants, rounds, steps)
        for name, entry in entries.items():
            if not np.array_equal(texts[name][0], texts["jaxlm"][0]):
                raise ConfigError(f"batch {batch}: {name} does not generate the tokens of jaxlm")
            entry["tokens_per_second"] = batch * NEW / entry["wall_seconds"]
            entry["tokens_per_cpu_second"] = batch * NEW / entry["cpu_seconds"]
        races[f"batch {batch}"] = entries
    return {
        "shape": SHAPE,
        "dtype": "float32",
        "prompt": PROMPT,
        "new_tokens": NEW,
        "rounds": rounds,
        "steps_per_round": steps,
        "threads": 1,
        "races": races,
    }


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    for title, entries in results["races"].items():
        lines += race_table(
            title,
            entries,
            {
                "tokens/s": lambda e: f"{e['tokens_per_second']:.0f}",
                "tokens/CPU s": lambda e: f"{e['tokens_per_cpu_second']:.0f}",
                "this/ours wall": lambda e: f"{1 / e['ours_over_this_wall']:.2f}",
                "this/ours CPU": lambda e: f"{1 / e['ours_over_this_cpu']:.2f}",
            },
        )
    return "\n".join(lines) + "\n"
