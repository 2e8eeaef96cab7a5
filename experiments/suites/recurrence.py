"""Recurrent mixers: tokens per second forward and backward, beside transformers' Mamba-2 and Llama; cost of a token.

A stack of mixers without feed-forward (attention and Llama have one of `HIDDEN` units, since Llama cannot do without)
and a small vocabulary. Mamba-2 in PyTorch is its plain path, the one that runs without a GPU, at every chunk size and
number of threads of `CHUNKS` and `THREADS`: all are tried first, and those that are best in wall time and in
CPU-seconds join the race. Peers have our weights, and equal losses show that they are the same models.

The cost of a generated token is taken after few and after many tokens: that of a recurrence does not grow.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.race import Contestant, race
from experiments.race import table as race_table
from jaxlm.core import config, registry
from jaxlm.core.errors import ConfigError
from jaxlm.ffn.glu import Glu
from jaxlm.interop.save import save_hf
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.mixer.recurrent import Recurrent
from jaxlm.model import language_model
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.norm.rms import RmsNorm
from jaxlm.ops.cross_entropy import cross_entropy

SHAPE = {"layers": 4, "width": 256, "vocab": 512, "length": 1024, "batch": 4}
HEADS, HIDDEN, EPS = 4, 8, 1e-5
CHUNKS, THREADS = (32, 64, 128), (1, 2)  # of Mamba-2 in PyTorch, whose temporaries at 256 are of several GB
SEEN, NEW = (256, 1024, 4096), 32  # tokens before, and tokens over which the cost of one is taken
PIECE = 256  # tokens that are read at a time
MAMBA2, ATTENTION = "mamba2", "attention"
PEER = "transformers mamba2"


def mixers() -> dict[str, Any]:
    """Mamba-2 first, attention, then every other mixer with a state of fixed size, as it is but for `HEADS`."""
    found: dict[str, Any] = {MAMBA2: Mamba2(norm_eps=EPS), ATTENTION: Attention(heads=HEADS)}
    for name in registry.methods("mixer"):
        kind = registry.get("mixer", name)
        if isinstance(kind, type) and issubclass(kind, Recurrent) and name not in found:
            fields = {"heads": HEADS, "max_length": max(SEEN) + NEW}
            args = {key: value for key, value in fields.items() if hasattr(kind, key)}
            found[name] = config.make("mixer", {"name": name, "args": args})
    return found


def model_of(mixer: Any) -> LanguageModel:
    """The stack, its layers written out one by one: a scan over them costs a third more CPU time at this size."""
    ffn = Glu(hidden=HIDDEN) if isinstance(mixer, Attention) else None
    norm = RmsNorm(EPS)
    layers = (Group((Block(mixer=mixer, ffn=ffn, norm=norm),) * SHAPE["layers"]),)
    return LanguageModel(ModelSpec(SHAPE["vocab"], SHAPE["width"], layers, norm=norm, tied_head=True, remat="none"))


def batch() -> dict[str, np.ndarray]:
    """Random tokens."""
    text = np.random.default_rng(0).integers(0, SHAPE["vocab"], (SHAPE["batch"], SHAPE["length"] + 1), np.int32)
    return {"tokens": text[:, :-1], "targets": text[:, 1:]}


class Gradient:
    """The mean loss of our model and its gradient, compiled ahead."""

    def __init__(self, name: str, mixer: Any):
        self.name, self.model = name, model_of(mixer)
        self.params = language_model.init(self.model, jax.random.key(0))
        data = jax.device_put(batch())

        def loss(params: Any) -> jax.Array:
            out: Any = self.model.apply({"params": params}, data["tokens"], ordered=True, logits=False)
            unembed = functools.partial(language_model.unembed, self.model, params)
            return cross_entropy(out.hidden, unembed, data["targets"], jnp.ones(data["targets"].shape))[0]

        mean = lambda params: loss(params) / data["targets"].size
        self._compiled = jax.jit(jax.value_and_grad(mean)).lower(self.params).compile()

    def run(self, steps: int) -> list[float]:
        return [float(jax.block_until_ready(self._compiled(self.params))[0]) for _ in range(steps)]

    def memory(self) -> float | None:
        found = self._compiled.memory_analysis()
        return None if found is None else float(found.temp_size_in_bytes)


class Steps:
    """The programs of a model that read `PIECE` tokens and write `NEW`: compiled once for states of one size."""

    def __init__(self, ours: Gradient):
        self.model, self.params = ours.model, ours.params
        apply: Any = lambda params, state, tokens: self.model.apply({"params": params}, tokens, state=state)

        def write(params: Any, state: Any) -> jax.Array:
            full = jax.tree.map(jnp.shape, state)  # carried without the axis of one row, as `jaxlm.decode.loop` does

            def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
                slim, token = carry
                out = apply(params, jax.tree.map(jnp.reshape, slim, full), token)
                token = jnp.argmax(out.logits[:, -1:], -1).astype(jnp.int32)
                return (jax.tree.map(jnp.squeeze, out.state), token), token

            return jax.lax.scan(step, (jax.tree.map(jnp.squeeze, state), jnp.zeros((1, 1), jnp.int32)), None, NEW)[1]

        self.read = jax.jit(lambda params, state, tokens: apply(params, state, tokens).state)
        self.write = jax.jit(write)


class Decode:
    """`NEW` greedy tokens of one row after ``seen`` others."""

    def __init__(self, name: str, steps: Steps, seen: int):
        self.name, self._steps = name, steps
        self._state: Any = language_model.init_state(steps.model, 1, seen + NEW)
        text = np.random.default_rng(1).integers(0, SHAPE["vocab"], (1, seen), np.int32)
        for at in range(0, seen, PIECE):
            self._state = steps.read(steps.params, self._state, text[:, at : at + PIECE])
        self.run(1)

    def run(self, steps: int) -> list[np.ndarray]:
        return [np.asarray(self._steps.write(self._steps.params, self._state)) for _ in range(steps)]

    def memory(self) -> float:
        return float(sum(x.nbytes for x in jax.tree.leaves(self._state)))


def run(rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """The race forward and backward, and one for each mixer's tokens; peers try ``threads`` too."""
    ours = [Gradient(name, mixer) for name, mixer in mixers().items()]
    tried, peers = _peers({c.name: c for c in ours}, sorted({*THREADS, threads}), threads)
    contestants: list[Contestant] = [*ours[:1], *peers, *ours[1:]]
    entries, losses = race(contestants, rounds, steps)
    _same_models(losses)
    tokens = SHAPE["batch"] * SHAPE["length"]
    for entry in entries.values():
        _rates(entry, tokens)
    return {
        "shape": SHAPE,
        "dtype": "float32",
        "heads": HEADS,
        "hidden_of_attention": HIDDEN,
        "rounds": rounds,
        "steps_per_round": steps,
        "tried": tried,
        "contestants": entries,
        "decode": {c.name: _decode(c, rounds, steps) for c in ours},
    }


def _peers(
    ours: Mapping[str, Gradient], all_threads: list[int], threads: int
) -> tuple[dict[str, Any], list[Contestant]]:
    """What a trial gave of every setting of Mamba-2, and the peers that race."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        print("transformers and torch are not both installed (pip install 'jaxlm[torch]'): ours alone")
        return {}, []
    from experiments.peers import transformers_train as peer

    with tempfile.TemporaryDirectory() as folder:
        save_hf(ours[MAMBA2].model, ours[MAMBA2].params, f"{folder}/{MAMBA2}")
        save_hf(ours[ATTENTION].model, ours[ATTENTION].params, f"{folder}/{ATTENTION}")
        settings = [
            peer.Gradient(f"{PEER} c{chunk} t{n}", f"{folder}/{MAMBA2}", batch(), n, chunk_size=chunk)
            for chunk in CHUNKS
            for n in all_threads
        ]
        llama = peer.Gradient("transformers llama", f"{folder}/{ATTENTION}", batch(), threads)
    tried, _ = race(settings, 2, 1)
    best = {min(tried, key=lambda name: tried[name][key]) for key in ("wall_seconds", "cpu_seconds")}
    return tried, [*(c for c in settings if c.name in best), llama]


def _same_models(losses: Mapping[str, list[float]]) -> None:
    """Raises `ConfigError` unless peers have our losses."""
    for name, values in losses.items():
        if name.startswith("transformers"):
            ours = losses[MAMBA2 if name.startswith(PEER) else ATTENTION][0]
            if abs(values[0] - ours) > 1e-3 * ours:
                raise ConfigError(f"{name} is not the same model: its loss is {values[0]}, ours {ours}")


def _rates(entry: dict[str, Any], tokens: int) -> None:
    entry["tokens_per_second"] = tokens / entry["wall_seconds"]
    entry["tokens_per_cpu_second"] = tokens / entry["cpu_seconds"]


def _decode(ours: Gradient, rounds: int, steps: int) -> dict[str, Any]:
    """By tokens seen: seconds per token, bytes of the state."""
    compiled = Steps(ours)
    contestants = [Decode(str(seen), compiled, seen) for seen in SEEN]
    entries, _ = race(contestants, rounds, steps)
    return {
        name: {
            "wall_seconds": entry["wall_seconds"] / NEW,
            "cpu_seconds": entry["cpu_seconds"] / NEW,
            "state_bytes": entry["temporary_bytes"],
        }
        for name, entry in entries.items()
    }


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = race_table(
        "forward and backward",
        results["contestants"],
        {
            "tokens/s": lambda e: f"{e['tokens_per_second']:.0f}",
            "tokens/CPU s": lambda e: f"{e['tokens_per_cpu_second']:.0f}",
            "mamba2/this wall": lambda e: f"{1 / e['ours_over_this_wall']:.2f}",
            "mamba2/this CPU": lambda e: f"{1 / e['ours_over_this_cpu']:.2f}",
            "temp MB": lambda e: "-" if e["temporary_bytes"] is None else f"{e['temporary_bytes'] / 1e6:.0f}",
        },
    )
    by_seen = lambda seen: lambda e: f"{1e6 * e[seen]['cpu_seconds']:.0f}"
    seen = next(iter(results["decode"].values())).keys()
    columns = {f"after {n}": by_seen(n) for n in seen}
    largest = max(seen, key=int)
    columns["state kB"] = lambda e: f"{e[largest]['state_bytes'] / 1e3:.0f}"
    lines += race_table("CPU us per token", results["decode"], columns)
    return "\n".join(lines) + "\n"
