"""The entropies that an entropy patcher cuts by, from a text, in one command.

    python -m experiments.entropy_model --source=stdlib:docstrings --out=runs/entropies.npy
    python -m experiments.entropy_model --source=books/ --order=4 --buckets=1048576 --mean_bytes=6 --out=e.npy
    python -m experiments.entropy_model --source=stdlib:docstrings --model=runs/lm

Counts the training part of --source (`jaxlm.data.text`), writes the table of `jaxlm.model.patcher.entropy_table`, and
prints the threshold at which patches of the validation part, by the rule "global", are --mean_bytes long on average.
With --model, a run of `experiments.train_lm` on bytes, that model's entropies are taken in place of counts, and nothing
is written. Either is given to a model of patches by its name:

    python -m experiments.train_lm --config=configs/train_lm.py:patches --config.entropies=runs/entropies.npy
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from numpy.typing import NDArray

from experiments import command
from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.data import text
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.patcher import entropy_table
from jaxlm.model.patcher.base import MOST_TOKENS
from jaxlm.model.patcher.boundaries import entropy_ends, run_index
from jaxlm.model.patcher.entropy import entropy
from jaxlm.train.load import load_checkpoint

ROW, MOST_ROWS, AT_ONCE = 512, 400, 20  # the validation text is looked at in rows, by a model so many at once

FLAGS = flags.FlagValues()
SOURCE = flags.DEFINE_string("source", "stdlib:docstrings", "text to count", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", "runs/entropies.npy", "file to write", flag_values=FLAGS)
MODEL = flags.DEFINE_string("model", "", "workdir of a model of bytes, in place of counts", flag_values=FLAGS)
ORDER = flags.DEFINE_integer("order", 3, "bytes that the entropies know", flag_values=FLAGS)
BUCKETS = flags.DEFINE_integer("buckets", 65536, "entries of the table for each order", flag_values=FLAGS)
VOCABULARY = flags.DEFINE_integer("vocab_size", 256, "ids of the model's vocabulary", flag_values=FLAGS)
MEAN_BYTES = flags.DEFINE_float("mean_bytes", 4.5, "mean length of a patch, to find a threshold", flag_values=FLAGS)
MAX_BYTES = flags.DEFINE_integer("max_bytes", 16, "longest patch", flag_values=FLAGS)
BYTES = flags.DEFINE_integer("bytes", 0, "most bytes of text to count; 0 for all", flag_values=FLAGS)


def entropies(table: NDArray[np.float32], rows: NDArray[np.int32]) -> jax.Array:
    """Nats after each byte of texts [R, ROW]."""
    order = len(table) - 1
    padded = np.pad(rows, ((0, 0), (order, 0)))
    last = [jnp.asarray(padded[:, order - i : order - i + rows.shape[1]]) for i in range(order)]
    return entropy_table.look_up(jnp.asarray(table), last, jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape))


@functools.partial(jax.jit, static_argnums=2)
def mean_length(after: jax.Array, threshold: jax.Array | float, longest: int) -> jax.Array:
    """Bytes of a patch on average, by the rule "global" with patches cut at ``longest``, in texts [R, ROW]."""
    positions = jnp.broadcast_to(jnp.arange(after.shape[1]), after.shape)
    ends = entropy_ends("global", after, after, positions, threshold, 0.0)
    starts = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return after.size / (run_index(starts, jnp.full((len(after),), -1)) % longest == 0).sum()


def threshold_for(after: jax.Array, mean_bytes: float, longest: int) -> float:
    """The threshold whose patches are ``mean_bytes`` long on average, by bisection."""
    low, high = 0.0, float(np.log(VOCABULARY.value)) + 1
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_length(after, middle, longest) < mean_bytes else (low, middle)
    return high


def main() -> int:
    require(MAX_BYTES.value > 1, f"--max_bytes={MAX_BYTES.value}: expected 2 or more")
    require(
        1 < MEAN_BYTES.value < MAX_BYTES.value,
        f"--mean_bytes={MEAN_BYTES.value}: expected a mean above 1 and below --max_bytes={MAX_BYTES.value}",
    )
    require(BYTES.value >= 0, f"--bytes={BYTES.value}: expected 0 (all) or a positive number")
    given = [flag for flag in (OUT, ORDER, BUCKETS, VOCABULARY, BYTES) if FLAGS[flag.name].present]
    require(not (MODEL.value and given), f"--{given[0].name if given else ''} is of counts; --model needs none")
    corpus = text.read(SOURCE.value)
    held = np.frombuffer(b"\n".join(document.text for document in corpus.part("validation").documents), np.uint8)
    rows = held[: len(held) // ROW * ROW].reshape(-1, ROW)[:MOST_ROWS].astype(np.int32)
    after = of_model(Path(MODEL.value), rows) if MODEL.value else entropies(count(corpus), rows)
    if len(rows):
        threshold = threshold_for(after, MEAN_BYTES.value, MAX_BYTES.value)
        mean = float(mean_length(after, threshold, MAX_BYTES.value))
        print(f"mean entropy {after.mean():.3f} nats; threshold {threshold:.4f}: {mean:.2f} bytes a patch")
    return 0


def count(corpus: text.Corpus) -> NDArray[np.float32]:
    """The table of the training part, which is written."""
    out = Path(OUT.value)
    training, room = [], BYTES.value or sys.maxsize
    for document in corpus.part("train").documents:
        training.append(document.text[:room])
        room -= len(training[-1])
        if room <= 0:
            break
    start = time.perf_counter()
    table = entropy_table.fit(training, ORDER.value, BUCKETS.value, VOCABULARY.value)
    seconds = time.perf_counter() - start
    out.parent.mkdir(parents=True, exist_ok=True)
    entropy_table.save(out, table)
    counted = sum(map(len, training))
    size = f"order {ORDER.value}, {BUCKETS.value} buckets"
    print(f"{out}: {size}, from {counted:,} bytes of {SOURCE.value}, {seconds:.1f} s")
    print("contexts known:", ", ".join(f"{j}: {int((row >= 0).sum()):,}" for j, row in enumerate(table)))
    return table


def of_model(workdir: Path, rows: NDArray[np.int32]) -> jax.Array:
    """Nats after each byte of texts [R, ROW], by a trained model."""
    model, params = load_checkpoint(workdir)
    size = getattr(model.spec, "vocab_size", None)
    require(
        isinstance(model, LanguageModel) and size is not None and 256 <= size <= MOST_TOKENS,
        f"--model={workdir}: expected a language model of bytes, with a vocabulary of 256 to {MOST_TOKENS}, got {size}",
    )

    @jax.jit
    def one(params: Params, rows: jax.Array) -> jax.Array:
        logits = model.pure(params, rows).logits
        assert logits is not None
        return entropy(logits)

    groups = np.array_split(rows, -(-len(rows) // AT_ONCE)) if len(rows) else [rows]
    return jnp.concatenate([one(params, group) for group in groups])


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
