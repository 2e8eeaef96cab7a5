"""Tables and figures of the long-context retrieval study, from its results.csv alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import study


class Row(NamedTuple):
    """One line of results.csv: ``depth`` is a bin, 0 for the start of the row."""

    arm: str
    seed: int
    length: int
    depth: int
    examples: int
    accuracy: float


def accuracy(rows: Sequence[Row], arm: str, length: int, depth: int | None = None) -> dict[int, float]:
    """Accuracy of an arm at a length (and depth bin), per seed."""
    chosen = [r for r in rows if r.arm == arm and r.length == length and depth in (None, r.depth)]
    seeds = sorted({r.seed for r in chosen})
    of = {seed: [r for r in chosen if r.seed == seed] for seed in seeds}
    return {s: float(np.average([r.accuracy for r in of[s]], weights=[r.examples for r in of[s]])) for s in seeds}


def one_line(rows: Sequence[Row], lengths: Sequence[int]) -> str:
    """Accuracy at each length of one run."""
    return " ".join(f"{next(iter(accuracy(rows, rows[0].arm, length).values())):.2f}" for length in lengths)


def table(rows: Sequence[Row], arms: Sequence[str], unit: int) -> str:
    """Mean over seeds with the worst and the best, per arm and length."""
    lengths = sorted({r.length for r in rows})
    seeds = len({r.seed for r in rows})
    head = f"passkey accuracy against length, in training lengths; mean (worst-best) of {seeds} seeds"
    lines = [head, f"{'attention':<16}" + "".join(f"{f'{n // unit}x':>18}" for n in lengths)]
    for arm in arms:
        cells = []
        for length in lengths:
            found = list(accuracy(rows, arm, length).values())
            cell = f"{np.mean(found):.2f} ({min(found):.2f}-{max(found):.2f})" if found else "-"
            cells.append(f"{cell:>18}")
        lines.append(f"{arm:<16}" + "".join(cells))
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], workdir: Path, arms: Sequence[str], unit: int, depths: int) -> str:
    """Writes table.txt and, where matplotlib is installed, the figures; returns what to print."""
    text = table(rows, arms, unit)
    (workdir / "table.txt").write_text(text, encoding="utf-8")
    held = [arm for arm in arms if any(r.arm == arm for r in rows)]
    return text + study.figures(
        lambda: _curves(rows, held, unit, workdir), lambda: _heat_maps(rows, held, unit, depths, workdir)
    )


def _curves(rows: Sequence[Row], arms: Sequence[str], unit: int, workdir: Path) -> Path:
    """Accuracy against length: mean over seeds, band from the worst to the best."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    lengths = sorted({r.length for r in rows})
    for arm in arms:
        found = [list(accuracy(rows, arm, n).values()) for n in lengths]
        axes.plot(lengths, [np.mean(x) for x in found], marker="o", label=arm)
        axes.fill_between(lengths, [min(x) for x in found], [max(x) for x in found], alpha=0.15)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n // unit}x" for n in lengths])
    axes.set(xlabel="length of the row, in training lengths", ylabel="passkey accuracy", ylim=(-0.03, 1.03))
    axes.legend(fontsize=8)
    return study.saved(figure, workdir / "accuracy_by_length.png")


def _heat_maps(rows: Sequence[Row], arms: Sequence[str], unit: int, depths: int, workdir: Path) -> Path:
    """A panel for each arm: length across, depth down, mean accuracy over seeds as colour."""
    import matplotlib.pyplot as plt

    lengths = sorted({r.length for r in rows})
    size = (2.2 * len(arms) + 1, 3.2)
    figure, panels = plt.subplots(1, len(arms), figsize=size, sharey=True, squeeze=False, layout="constrained")
    image: Any = None
    for axes, arm in zip(panels[0], arms, strict=True):
        values = np.full((depths, len(lengths)), np.nan)
        for (i, depth), (j, length) in ((a, b) for a in enumerate(range(depths)) for b in enumerate(lengths)):
            if found := accuracy(rows, arm, length, depth):
                values[i, j] = np.mean(list(found.values()))
        image = axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto", interpolation="nearest")
        axes.set_title(arm, fontsize=9)
        axes.set_xticks(range(len(lengths)), [f"{n // unit}x" for n in lengths], fontsize=7)
    panels[0][0].set_ylabel("depth of the passkey")
    panels[0][0].set_yticks([0, depths - 1], ["start", "end"])
    figure.supxlabel("length of the row, in training lengths", fontsize=9)
    figure.colorbar(image, ax=panels[0].tolist(), label="accuracy")
    return study.saved(figure, workdir / "accuracy_by_depth.png")
