"""The entropies that an entropy patcher cuts by, from a text, in one command.

    python -m experiments.entropy_model --source=stdlib:docstrings --out=runs/entropies.npy
    python -m experiments.entropy_model --source=books/ --order=4 --buckets=1048576 --mean_bytes=6 --out=e.npy

Counts the training part of --source (`jaxlm.data.text`), writes the table of `jaxlm.model.patcher.entropy_table`, and
prints the threshold at which patches of the validation part, by the rule "global", are --mean_bytes long on average.
`entropy_table.install(params, entropy_table.load(PATH))` puts the table into a model whose patcher has the same --order
and --buckets; nothing trains it there.
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
from jaxlm.data import text
from jaxlm.model.patcher import entropy_table
from jaxlm.model.patcher.boundaries import entropy_ends, run_index

ROW, MOST_ROWS = 512, 400  # the validation text is looked at in rows

FLAGS = flags.FlagValues()
SOURCE = flags.DEFINE_string("source", "stdlib:docstrings", "text to count", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", "runs/entropies.npy", "file to write", flag_values=FLAGS)
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
    out = Path(OUT.value)
    corpus = text.read(SOURCE.value)
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
    held = np.frombuffer(b"\n".join(document.text for document in corpus.part("validation").documents), np.uint8)
    rows = held[: len(held) // ROW * ROW].reshape(-1, ROW)[:MOST_ROWS].astype(np.int32)
    counted = sum(map(len, training))
    size = f"order {ORDER.value}, {BUCKETS.value} buckets"
    print(f"{out}: {size}, from {counted:,} bytes of {SOURCE.value}, {seconds:.1f} s")
    print("contexts known:", ", ".join(f"{j}: {int((row >= 0).sum()):,}" for j, row in enumerate(table)))
    if len(rows):
        after = entropies(table, rows)
        threshold = threshold_for(after, MEAN_BYTES.value, MAX_BYTES.value)
        mean = float(mean_length(after, threshold, MAX_BYTES.value))
        print(f"mean entropy {after.mean():.3f} nats; threshold {threshold:.4f}: {mean:.2f} bytes a patch")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
