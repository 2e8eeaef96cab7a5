"""Figures of studies: a panel for each part, a curve for each arm, medians over seeds in bands from worst to best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import study

Curve = tuple[list[float], np.ndarray]  # x, and values [seeds, x]
Panels = dict[str, dict[str, Curve]]


def add(panels: Panels, panel: str, label: str, points: Sequence[tuple[float, Mapping[int, float]]]) -> None:
    """Adds a curve through values by seed: of the seeds that all points have, points that have none left out."""
    points = [(x, values) for x, values in points if values]
    seeds = sorted(set.intersection(*(set(values) for _, values in points))) if points else []
    if seeds:
        curve = np.array([[values[seed] for _, values in points] for seed in seeds])
        panels.setdefault(panel, {})[label] = ([x for x, _ in points], curve)


def draw(panels: Panels, x_name: str, y_name: str, path: Path, *, log_x: bool = False, log_y: bool = False) -> Path:
    """Writes the figure as PNG."""
    import matplotlib.pyplot as plt

    columns = min(4, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    size = (2.0 + 3.4 * columns, 3.0 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    for axes, (panel, curves) in zip(grid.flat, panels.items(), strict=False):
        for label, (x, values_SX) in curves.items():
            color = f"C{labels.index(label) % 10}"
            dashes = "-" if labels.index(label) < 10 else "--"
            axes.plot(x, np.median(values_SX, 0), dashes, color=color, label=label, marker="." if len(x) < 12 else "")
            axes.fill_between(x, values_SX.min(0), values_SX.max(0), color=color, alpha=0.15, lw=0)
        axes.set(title=panel, xlabel=x_name)
        if log_x:
            axes.set_xscale("log", base=2)
        if log_y:
            axes.set_yscale("symlog", base=2)
    for axes in grid[:, 0]:
        axes.set_ylabel(y_name)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
    return study.saved(figure, path)
