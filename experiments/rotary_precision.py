"""How far bfloat16 takes rotary positions from being relative, and who pays for it.

    python -m experiments.rotary_precision --workdir=runs/precision

A rotary score q(p + r) . k(p) should not depend on p. Wang et al. 2024, "When Precision Meets Position: BFloat16 Breaks
Down RoPE in Long-Context Training", find that in bfloat16 it does, more so at large p, and that attention changes most
at the first token of a row; AnchorAttention gives all documents of a row one first token for that reason (the mask
`jaxlm.attention.data_mask.Anchor`). Measured here without training, against float64:

* the error of scores, by p, with everything in float32, with cos and sin rounded to bfloat16, with q, k and their
  turned forms rounded too, and with the angle itself in bfloat16 (what a careless cast gives);
* how much the attention of a random layer changes when all its positions are shifted, and which share of that change is
  the first token's.

Writes to --workdir: scores.csv, shifts.csv, table.txt, precision.png, provenance.json.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command, provenance, study
from jaxlm.core.config import require
from jaxlm.ops.rotary import inverse_frequencies, turn

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", "runs/precision", "where results go", flag_values=FLAGS)
WIDTH = flags.DEFINE_integer("width", 64, "channels of a head", flag_values=FLAGS)
LENGTH = flags.DEFINE_integer("length", 256, "tokens of the row that is shifted", flag_values=FLAGS)
SEEDS = flags.DEFINE_integer("seeds", 3, "draws of queries and keys", flag_values=FLAGS)

STARTS = (0, 1024, 4096, 16_384, 65_536, 131_072)
HEADS, DISTANCE = 16, 7
KINDS = ("float32", "bf16 table", "bf16 all", "bf16 angle")


class Score(NamedTuple):
    """One line of scores.csv: the mean absolute error of scores whose true value has a mean size of ``size``."""

    kind: str
    seed: int
    start: int
    error: float
    size: float


class Shift(NamedTuple):
    """One line of shifts.csv: mean change of a row of attention (sum over keys), the first key's part of it, and the
    part that the first key would have were all alike.
    """

    kind: str
    seed: int
    start: int
    change: float
    first: float
    even: float


def turned(x: jax.Array, positions: np.ndarray, kind: str) -> jax.Array:
    """x [1, L, H, K] turned by positions [L], float32, with the roundings of a kind."""
    low = lambda value: value.astype(jnp.bfloat16).astype(jnp.float32)
    frequencies = inverse_frequencies(10_000.0, x.shape[-1])
    angles = jnp.asarray(positions, jnp.float32)[None, :, None] * frequencies
    if kind == "bf16 angle":
        at, frequencies = jnp.asarray(positions, jnp.bfloat16), frequencies.astype(jnp.bfloat16)
        angles = (at[None, :, None] * frequencies).astype(jnp.float32)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if kind != "float32":
        cos, sin = low(cos), low(sin)
    if kind == "bf16 all":
        return low(turn(low(x), cos, sin, "half"))
    return turn(x, cos, sin, "half")


def exact(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The same in float64."""
    half = x.shape[-1] // 2
    angles = positions[None, :, None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None]
    a, b = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def draws(seed: int, length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys float32 [1, length, HEADS, width]; keys lean to one side, as those of trained models do."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, 1, length, HEADS, width))
    lean = rng.normal(size=(HEADS, width))
    return (q + lean).astype(np.float32), (k + lean).astype(np.float32)


def scores(seed: int, width: int) -> list[Score]:
    """Errors of q(p + r) . k(p), over 64 draws of HEADS pairs each."""
    q, k = draws(seed, 64, width)
    true = (exact(q, np.full(64, DISTANCE)) * exact(k, np.zeros(64))).sum(-1)
    out = []
    for kind in KINDS:
        for start in STARTS:
            ours = turned(jnp.asarray(q), np.full(64, start + DISTANCE), kind)
            theirs = turned(jnp.asarray(k), np.full(64, start), kind)
            found = (np.asarray(ours, np.float64) * np.asarray(theirs, np.float64)).sum(-1)
            out.append(Score(kind, seed, start, float(np.abs(found - true).mean()), float(np.abs(true).mean())))
    return out


def shifts(seed: int, length: int, width: int) -> list[Shift]:
    """Changes of causal attention when a row's positions start elsewhere."""
    q, k = draws(seed, length, width)
    seen = np.tril(np.ones((length, length), bool))

    def weights(kind: str, start: int) -> np.ndarray:
        at = start + np.arange(length)
        ours, theirs = (np.asarray(turned(jnp.asarray(x), at, kind), np.float64) for x in (q, k))
        logits = np.where(seen, np.einsum("blhk,bthk->bhlt", ours, theirs) / np.sqrt(width), -np.inf)
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        return raised / raised.sum(-1, keepdims=True)

    out = []
    for kind in KINDS:
        here = weights(kind, 0)
        for start in STARTS[1:]:
            change = np.abs(weights(kind, start) - here)[:, :, 1:]
            total = change.sum(-1)
            first = change[..., 0].sum() / max(total.sum(), 1e-300)
            even = float(np.mean(1 / np.arange(2, length + 1)))
            out.append(Shift(kind, seed, start, float(total.mean()), float(first), even))
    return out


def table(found: Sequence[Score], moved: Sequence[Shift]) -> str:
    mean = lambda values: float(np.mean(list(values)))
    size = mean(s.size for s in found)
    lines = [
        f"mean error of rotary scores (mean size {size:.1f}) at the distance {DISTANCE}, by the key's position",
        f"{'':<14}" + "".join(f"{start:>12,}" for start in STARTS),
    ]
    for kind in KINDS:
        cells = (mean(s.error for s in found if (s.kind, s.start) == (kind, start)) for start in STARTS)
        lines.append(f"{kind:<14}" + "".join(f"{cell:>12.2e}" for cell in cells))
    ratio = [mean(s.error for s in found if (s.kind, s.start) == (kind, 65_536)) for kind in ("bf16 angle", "float32")]
    lines += [
        f"at 65,536 the error of an angle in bfloat16 is {ratio[0] / ratio[1]:,.0f} times that of float32",
        "",
        "change of attention when all positions of a row are shifted, and the first token's share of it (if all keys"
        f" were alike: {moved[0].even:.3f})",
        f"{'':<14}" + "".join(f"{start:>18,}" for start in STARTS[1:]),
    ]
    for kind in KINDS:
        cells = []
        for start in STARTS[1:]:
            rows = [s for s in moved if (s.kind, s.start) == (kind, start)]
            cells.append(f"{mean(s.change for s in rows):>9.1e} ({mean(s.first for s in rows):.3f})")
        lines.append(f"{kind:<14}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines) + "\n"


def draw(found: Sequence[Score], workdir: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for kind in KINDS:
        errors: list[Any] = [[s.error for s in found if (s.kind, s.start) == (kind, start)] for start in STARTS]
        axes.plot([max(1, s) for s in STARTS], [np.mean(e) for e in errors], marker=".", label=kind)
    axes.set(xscale="log", yscale="log", xlabel="position of the key", ylabel="mean error of the score")
    axes.legend(fontsize=8)
    return study.saved(figure, workdir / "precision.png")


def main() -> int:
    require(WIDTH.value > 0 and WIDTH.value % 2 == 0, f"--width: expected an even number, got {WIDTH.value}")
    require(LENGTH.value > 1, f"--length: expected at least 2, got {LENGTH.value}")
    require(SEEDS.value > 0, f"--seeds: expected a positive number, got {SEEDS.value}")
    workdir, began = study.folder(WORKDIR), time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    found = [row for seed in range(SEEDS.value) for row in scores(seed, WIDTH.value)]
    moved = [row for seed in range(SEEDS.value) for row in shifts(seed, LENGTH.value, WIDTH.value)]
    study.save(found, workdir, Score, "scores.csv")
    study.save(moved, workdir, Shift, "shifts.csv")
    text = table(found, moved)
    (workdir / "table.txt").write_text(text, encoding="utf-8")
    provenance.write(workdir, seconds=time.monotonic() - began)
    print(text + study.figures(lambda: draw(found, workdir)))
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
