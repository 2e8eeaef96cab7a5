"""A context that grows past the training length under frequencies that follow it: what the cached keys should do.

    python -m experiments.growing_context --workdir=runs/growing

Dynamic NTK scaling turns queries and keys by frequencies of the current length. A full pass over the text so far is
what it means; a decoder that keeps keys must choose. Ours keeps them plain and sees all under the current frequencies;
transformers keeps each as it was turned when it came (its issue 25104). Neither is the full pass, since deeper layers'
cached keys were made of what the model saw under earlier frequencies. Small byte models, trained at L, read held-out
text one token at a time from L to 4 L; each way is measured against the full pass, by loss and KL divergence. With the
length declared beforehand the cache and the full pass agree exactly, which is shown as well.

Writes to --workdir: results.csv, table.txt, growing.png, provenance.json.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command, provenance, study
from experiments.context_extension import trained
from experiments.extension_plan import Base, RunConfig
from experiments.extension_text import Text
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.data.text import read
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.model.language_model import LanguageModel, replace
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling.dynamic import Dynamic
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", "runs/growing", "where results go", flag_values=FLAGS)
STEPS = flags.DEFINE_integer("steps", 1200, "of training, at L", flag_values=FLAGS)
SEEDS = flags.DEFINE_integer("seeds", 3, "models", flag_values=FLAGS)
WINDOWS = flags.DEFINE_integer("windows", 64, "texts that are read", flag_values=FLAGS)

MODEL = ModelSpec(
    vocab_size=ByteTokenizer().vocab_size,
    width=64,
    layers=(Group((Block(mixer=Attention(heads=4, position="rotary"), ffn=Mlp(activation="gelu")),), 2),),
    remat="none",
)
OPTIMIZER = Optimizer(schedule=Schedule("cosine", 4e-3, warmup=0.03, final_fraction=0.1), b2=0.98, weight_decay=0.01)
BIN = 32  # tokens that a line of the results is a mean of
WAYS = ("full pass", "plain keys", "keys as they came", "declared")


class Row(NamedTuple):
    """Mean loss of a text's tokens from ``length - 32`` to ``length``, and mean KL divergence from the full pass."""

    way: str
    seed: int
    length: int
    loss: float
    kl: float


@dataclasses.dataclass(frozen=True)
class AsTheyCame(Rotary):
    """Rotary positions whose keys stay as they were turned first, whatever becomes of the frequencies."""

    paper: ClassVar[str] = "none: how transformers caches keys under dynamic scaling"

    @property
    def pre_rotate(self) -> bool:
        return True


registry.register("position", "rotary_as_they_came", AsTheyCame)


def full_passes(model: Decoder, params: Params, tokens: np.ndarray, original: int) -> np.ndarray:
    """log p [T, B, V] of the token after each prefix longer than ``original``, every prefix read by itself."""

    @jax.jit
    def one(n: jax.Array) -> jax.Array:
        hidden = model(params, jnp.asarray(tokens), length=n, logits=False).hidden
        return jax.nn.log_softmax(model.unembed(params, jax.lax.dynamic_index_in_dim(hidden, n - 1, 1, False)))

    return np.stack([np.asarray(one(jnp.int32(n))) for n in range(original + 1, tokens.shape[1] + 1)])


def in_steps(
    model: Decoder, params: Params, tokens: np.ndarray, original: int, declared: int | None = None
) -> np.ndarray:
    """The same one token at a time, ``original`` tokens being read at first; the length grows, or is declared."""
    state = decoder.init_state(model.spec, len(tokens), tokens.shape[1], registry.get("cache", "full")())
    params = decoder.unstack(params)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params: Params, state: Any, tokens: jax.Array, n: jax.Array) -> tuple[Any, jax.Array]:
        out = model(params, tokens, state=state, length=n, logits=False)
        return out.state, jax.nn.log_softmax(model.unembed(params, out.hidden[:, -1]))

    at = lambda n: jnp.int32(n if declared is None else declared)
    state, _ = step(params, state, jnp.asarray(tokens[:, :original]), at(original))
    found = []
    for n in range(original + 1, tokens.shape[1] + 1):
        state, log_p = step(params, state, tokens[:, n - 1 : n], at(n))
        found.append(np.asarray(log_p))
    return np.stack(found)


def compare(model: LanguageModel, params: Params, windows: np.ndarray, original: int, seed: int) -> list[Row]:
    """All ways on one trained model."""
    dynamic = Rotary(scaling=Dynamic(2.0, original))
    ours = Decoder(replace(model, {"mixer.position": dynamic}).spec)
    stale = Decoder(replace(model, {"mixer.position": AsTheyCame(scaling=dynamic.scaling)}).spec)
    tokens, targets = windows[:, :-1], windows[:, original + 1 :].T
    exact = full_passes(ours, params, tokens, original)
    total = tokens.shape[1]
    whole = ours(params, jnp.asarray(tokens), length=total).logits
    assert whole is not None
    last = np.asarray(jax.nn.log_softmax(whole[:, original:])).swapaxes(0, 1)
    read_as = {
        "full pass": (exact, exact),
        "plain keys": (in_steps(ours, params, tokens, original), exact),
        "keys as they came": (in_steps(stale, params, tokens, original), exact),
        "declared": (in_steps(ours, params, tokens, original, declared=total), last),
    }
    rows = []
    for way, (found, against) in read_as.items():
        losses = -np.take_along_axis(found, targets[..., None], -1)[..., 0].mean(1)
        kl = (np.exp(against) * (against - found)).sum(-1).mean(1)
        for start in range(0, len(losses), BIN):
            part = slice(start, start + BIN)
            rows.append(
                Row(way, seed, original + start + BIN, float(losses[part].mean()), float(max(0.0, kl[part].mean())))
            )
    return rows


def table(rows: Sequence[Row], original: int) -> str:
    lengths = sorted({r.length for r in rows})
    seeds = len({r.seed for r in rows})
    mean = lambda way, n, field: np.mean([getattr(r, field) for r in rows if (r.way, r.length) == (way, n)])
    head = f"{'':<20}" + "".join(f"{n:>9}" for n in lengths)
    lines = [f"trained at {original}, dynamic NTK, mean of {seeds} seeds; loss of the last {BIN} tokens, nats", head]
    lines += [f"{way:<20}" + "".join(f"{mean(way, n, 'loss'):>9.3f}" for n in lengths) for way in WAYS]
    lines += ["", "KL divergence from the full pass at the same length (of 'declared': at the declared one)", head]
    lines += [f"{way:<20}" + "".join(f"{mean(way, n, 'kl'):>9.1e}" for n in lengths) for way in WAYS[1:]]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], workdir: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    lengths = sorted({r.length for r in rows})
    for way in WAYS:
        axes.plot(
            lengths, [np.mean([r.loss for r in rows if (r.way, r.length) == (way, n)]) for n in lengths], label=way
        )
    axes.set(xlabel="length of the text so far", ylabel=f"loss of the last {BIN} tokens, nats")
    axes.legend(fontsize=8)
    return study.saved(figure, workdir / "growing.png")


def main() -> int:
    for flag in (STEPS, SEEDS, WINDOWS):
        require(flag.value > 0, f"--{flag.name}: expected a positive number, got {flag.value}")
    workdir, began = study.folder(WORKDIR), time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    config = RunConfig(bases=(Base("rotary", MODEL),), steps=STEPS.value, batch_tokens=2048, optimizer=OPTIMIZER)
    text = Text(read(config.source), ByteTokenizer())
    base, progress, rows = config.bases[0], study.Report(STEPS.value * SEEDS.value), []
    windows = text.windows(4 * config.original, WINDOWS.value, 4 * config.original)
    for seed in range(SEEDS.value):
        stages = (config.original,)
        params = trained(config, base.model, stages, config.steps, config.optimizer, text, seed, progress)
        rows += compare(LanguageModel(base.model), params, windows, config.original, seed)
        study.save(rows, workdir, Row)
    progress.close()
    found = table(rows, config.original)
    (workdir / "table.txt").write_text(found, encoding="utf-8")
    provenance.write(workdir, seconds=time.monotonic() - began)
    print(found + study.figures(lambda: draw(rows, workdir)))
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
