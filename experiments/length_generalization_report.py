"""Tables and figures of the length-generalization study, from its results.csv alone.

The authors' figures are mean exact match on the test lengths over 3 seeds, from the result files they published
(McGill-NLP/length-generalization): 12 layers, 107 M parameters, training lengths to 20 and test lengths to 40 for the
copy and reverse tasks. Ours are far smaller models at half the lengths; the order is what is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import study
from jaxlm.core import registry

AUTHORS: dict[str, dict[str, float]] = {
    "copy_rsc": {"none": 0.986, "t5_bias": 0.771, "alibi": 0.289, "rotary": 0.000, "sinusoidal": 0.000},
    "copy_rsc2x": {"none": 0.974, "t5_bias": 0.558, "alibi": 0.194, "rotary": 0.000, "sinusoidal": 0.000},
    "copy_rdc": {"none": 0.967, "t5_bias": 0.939, "alibi": 0.170, "rotary": 0.016, "sinusoidal": 0.000},
    "copy_cmc": {"none": 0.305, "t5_bias": 0.420, "alibi": 0.331, "rotary": 0.011, "sinusoidal": 0.028},
    "copy_cmc2x": {"none": 0.431, "t5_bias": 0.524, "alibi": 0.569, "rotary": 0.043, "sinusoidal": 0.040},
    "reverse_mc": {"none": 0.230, "t5_bias": 0.242, "alibi": 0.171, "rotary": 0.077, "sinusoidal": 0.023},
    "reverse_mc2x": {"none": 0.473, "t5_bias": 0.448, "alibi": 0.195, "rotary": 0.053, "sinusoidal": 0.011},
    "reverse_mcrv": {"none": 0.182, "t5_bias": 0.140, "alibi": 0.115, "rotary": 0.000, "sinusoidal": 0.000},
    "scan": {"none": 0.797, "t5_bias": 0.799, "alibi": 0.438, "rotary": 0.283, "sinusoidal": 0.057},
    "pcfg": {"none": 0.433, "t5_bias": 0.439, "alibi": 0.428, "rotary": 0.439, "sinusoidal": 0.366},
    "addition": {"none": 0.148, "t5_bias": 0.151, "alibi": 0.104, "rotary": 0.048, "sinusoidal": 0.057},
}


class Row(NamedTuple):
    """One line of results.csv."""

    task: str
    position: str
    seed: int
    length: int
    exact_match: float


def task_label(task: Any) -> str:
    """The registered name of a task."""
    return registry.name_of("task", task)


def split_lengths(rows: Sequence[Row], tasks: Mapping[str, Any]) -> dict[str, tuple[set[int], set[int]]]:
    """Training and test lengths of the tasks, by name, that occur in the rows."""
    seen = {row.task for row in rows}
    out = {}
    for name, task in tasks.items():
        (a, b), (c, d) = task.train_lengths, task.eval_lengths
        if name in seen:
            out[name] = set(range(a, b + 1)), set(range(c, d + 1))
    return out


def scores(rows: Sequence[Row], task: str, position: str, lengths: set[int]) -> dict[int, float]:
    """Mean exact match over ``lengths``, per seed."""
    seeds = sorted({r.seed for r in rows if r.task == task and r.position == position})
    chosen = [r for r in rows if r.task == task and r.position == position and r.length in lengths]
    return {seed: float(np.mean([r.exact_match for r in chosen if r.seed == seed])) for seed in seeds}


def one_line(rows: Sequence[Row], task: str, position: str, seed: int) -> str:
    """Exact match at each length of one run, as digits of tenths (``*`` for 1.0)."""
    chosen = sorted(r for r in rows if (r.task, r.position, r.seed) == (task, position, seed))
    marks = "".join("*" if r.exact_match == 1 else str(int(r.exact_match * 10)) for r in chosen)
    return f"lengths {chosen[0].length}-{chosen[-1].length} {marks}"


def ranks(values: Sequence[float]) -> np.ndarray:
    """Rank 1 for the largest; equal values share the mean of their ranks."""
    array = np.asarray(values)
    return np.array([1 + (array > v).sum() + ((array == v).sum() - 1) / 2 for v in array])


def reciprocal_ranks(
    rows: Sequence[Row], lengths: dict[str, tuple[set[int], set[int]]], ranked: Sequence[str]
) -> dict[str, list[float]]:
    """1 / rank of each encoding on every (task, seed) that all of them have run."""
    out: dict[str, list[float]] = {label: [] for label in ranked}
    for task, (_, test) in lengths.items():
        per = {label: scores(rows, task, label, test) for label in ranked}
        for seed in sorted(set.intersection(*(set(s) for s in per.values()))):
            for label, rank in zip(ranked, ranks([per[label][seed] for label in ranked]), strict=True):
                out[label].append(1 / rank)
    return out


def table(rows: Sequence[Row], ranked: Sequence[str], tasks: Mapping[str, Any]) -> str:
    """Mean over seeds with spread, per task and encoding, beside the authors' figures; then mean reciprocal ranks."""
    lengths = split_lengths(rows, tasks)
    labels = list(dict.fromkeys(r.position for r in sorted(rows, key=lambda r: _order(r.position))))
    lines = []
    for task, (train, test) in lengths.items():
        seeds = len({r.seed for r in rows if r.task == task})
        lines.append(
            f"{task}: exact match, trained on lengths {min(train)}-{max(train)}, "
            f"tested on {min(test)}-{max(test)}, {seeds} seeds"
        )
        lines.append(
            f"  {'encoding':<20} {'in distribution':>15} {'test, mean':>11} {'(min-max)':>13} {'sd':>6} {'authors':>8}"
        )
        for label in labels:
            inside = list(scores(rows, task, label, train).values())
            outside = list(scores(rows, task, label, test).values())
            if not outside:
                continue
            published = AUTHORS.get(task, {}).get(label)
            spread = f"({min(outside):.2f}-{max(outside):.2f})"
            sd = f"{np.std(outside, ddof=1):.3f}" if len(outside) > 1 else "-"
            known = "-" if published is None else f"{published:.3f}"
            lines.append(
                f"  {label:<20} {np.mean(inside):>15.3f} {np.mean(outside):>11.3f} {spread:>13} {sd:>6} {known:>8}"
            )
        lines.append("")
    if len(lengths) > 1 and len(ranked) > 1:
        ours = reciprocal_ranks(rows, lengths, ranked)
        theirs = {
            label: [
                1 / ranks([AUTHORS[t][x] for x in ranked])[i] for t in lengths if set(ranked) <= set(AUTHORS.get(t, {}))
            ]
            for i, label in enumerate(ranked)
        }
        lines.append(
            f"mean reciprocal rank over {len(lengths)} tasks x seeds, ties given the mean rank "
            "(authors: from their task means)"
        )
        for label in sorted(ranked, key=lambda name: -np.mean(ours[name])):
            known = f"{np.mean(theirs[label]):.3f}" if theirs[label] else "-"
            lines.append(f"  {label:<20} {np.mean(ours[label]):>11.3f}   authors {known}")
    return "\n".join(lines).rstrip() + "\n"


def _order(label: str) -> tuple[int, str]:
    known = ("none", "t5_bias", "alibi", "rotary", "rotary_full", "sinusoidal")
    return (known.index(label) if label in known else len(known), label)


def write(rows: Sequence[Row], workdir: Path, ranked: Sequence[str], tasks: Mapping[str, Any]) -> str:
    """Writes table.txt and, where matplotlib is installed, the figures; returns what to print."""
    text = table(rows, ranked, tasks)
    (workdir / "table.txt").write_text(text, encoding="utf-8")
    lengths = split_lengths(rows, tasks)
    curves, maps = (functools.partial(draw, rows, lengths, workdir) for draw in (_curves, _heat_maps))
    return text + "\n" + study.figures(curves, maps)


def _curves(rows: Sequence[Row], lengths: dict[str, tuple[set[int], set[int]]], workdir: Path) -> Path:
    """Exact match against length, one panel a task: mean over seeds, band from the worst to the best."""
    import matplotlib.pyplot as plt

    columns = min(3, len(lengths))
    lines = -(-len(lengths) // columns)
    size = (1.5 + 4.0 * columns, 3.2 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    labels = sorted({r.position for r in rows}, key=_order)
    panels = list(grid.flat)
    for axes, (task, (train, test)) in zip(panels, lengths.items(), strict=False):
        x = sorted(train | test)
        for color, label in enumerate(labels):
            scores_SL = _grid(rows, task, label, x)
            if scores_SL.size:
                axes.plot(x, scores_SL.mean(0), color=f"C{color}", label=label, lw=1.8)
                axes.fill_between(x, scores_SL.min(0), scores_SL.max(0), color=f"C{color}", alpha=0.15, lw=0)
        axes.axvspan(min(train) - 0.5, max(train) + 0.5, color="0.92", zorder=0)
        axes.text(max(train) + 0.3, 1.03, "trained", ha="right", va="bottom", fontsize=8, color="0.4")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(title=task, xlabel="length", ylim=(-0.03, 1.12), xlim=(min(train) - 0.5, max(test) + 0.5))
    for axes in grid[:, 0]:
        axes.set_ylabel("exact match")
    for axes in panels[len(lengths) :]:
        axes.set_axis_off()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    return study.saved(figure, workdir / "curves.png", dpi=130)


def _heat_maps(rows: Sequence[Row], lengths: dict[str, tuple[set[int], set[int]]], workdir: Path) -> Path:
    """Mean exact match, encodings against lengths, one panel a task."""
    import matplotlib.pyplot as plt

    labels = sorted({r.position for r in rows}, key=_order)
    height = 1.0 + 0.32 * len(labels)
    figure, panels = plt.subplots(len(lengths), 1, figsize=(7.5, height * len(lengths)), squeeze=False)
    image: Any = None
    for axes, (task, (train, test)) in zip(panels[:, 0], lengths.items(), strict=True):
        x = sorted(train | test)
        grids = [_grid(rows, task, label, x) for label in labels]
        means = np.array([g.mean(0) if g.size else np.full(len(x), np.nan) for g in grids])
        image = axes.imshow(means, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.set_xticks(range(len(x)), [str(n) for n in x], fontsize=7)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.axvline(len(train) - 0.5, color="w", lw=1.5)
        axes.set_title(f"{task} (trained left of the line)", fontsize=9)
    figure.colorbar(image, ax=panels[:, 0].tolist(), label="exact match")
    return study.saved(figure, workdir / "heat_maps.png", dpi=130)


def _grid(rows: Sequence[Row], task: str, label: str, lengths: Sequence[int]) -> np.ndarray:
    """Exact match [seeds, lengths]."""
    found = {(r.seed, r.length): r.exact_match for r in rows if r.task == task and r.position == label}
    seeds = sorted({seed for seed, _ in found})
    return np.array([[found.get((seed, n), np.nan) for n in lengths] for seed in seeds])
