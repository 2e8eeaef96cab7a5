"""Tables and figures of `experiments.state_space`, from its results.csv alone."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import claims, study
from experiments.panels import Panels, draw
from experiments.panels import add as add_curve
from experiments.state_space_claims import CLAIMS, LINES, Results, Row, longest
from experiments.state_space_claims import best_rate as best_rate
from experiments.state_space_plan import CONDITIONS, Arm, RunConfig

IDLE = "*"  # behind an arm with seeds that have not left chance


def work_of(arm: Arm) -> int:
    """About how long an arm takes, to put the longest first."""
    return arm.steps * arm.batch_size * arm.task.tokens_bound(arm.task.train_lengths[1])


def one_line(rows: Sequence[Row]) -> str:
    """A run's score."""
    last = max(row.step for row in rows)
    return next(f"score {row.value:.3f}" for row in rows if row.measure == "score" and row.step == last)


def table(config: RunConfig, rows: Sequence[Row]) -> str:
    """The claim, what was found beside each line, and the values of every arm."""
    found = Results(config, rows)
    lines = [*textwrap.wrap(f"{config.study}: {CLAIMS[config.study]}", 110), ""]
    ran = [arm for arm in config.arms if found.of(arm, 0, "score")]
    lines += claims.table(LINES[config.study](found))
    lines += ["", *_values(found, ran)]
    idle = {arm: found.idle(arm) for arm in ran}
    for arm, seeds in idle.items():
        if seeds:
            which = ", ".join(map(str, sorted(seeds)))
            lines.append(f"{IDLE} not converged: {arm.part}, {arm.label}, seed {which}: counted above, not left out")
    rates = ", ".join(f"{rate:g}" for rate in config.rates)
    tried = f"; learning rates {rates} tried with seed {config.seeds[0]}, the best (named) serves all seeds"
    lines.append(
        f"median (worst) of seeds {sorted({row.seed for row in rows})}{tried if len(config.rates) > 1 else ''}"
    )
    return "\n".join(lines).rstrip() + "\n"


def _cell(values: dict[int, float], digits: int = 3, high: bool = True) -> str:
    """``median (worst)``."""
    if not values:
        return "-"
    numbers = list(values.values())
    return f"{np.median(numbers):.{digits}f} ({min(numbers) if high else max(numbers):.{digits}f})"


def _values(found: Results, ran: Sequence[Arm]) -> list[str]:
    """What was measured, an arm (or an arm and setting) a line."""
    lines = []
    for part in dict.fromkeys(arm.part for arm in ran):
        arms = [arm for arm in ran if arm.part == part]
        columns = _columns(found.config, arms)
        lines.append(f"{part:<34} {'floats':>7} {'rate':>6} " + " ".join(f"{name:>15}" for name, _ in columns))
        for arm in arms:
            mark = IDLE if found.idle(arm) else ""
            for setting in _settings(found.config):
                name = f"  {arm.label}{mark}" + (f", {setting}" if setting else "")
                size = f"{arm.state_floats or '-':>7}"
                cells = " ".join(f"{_cell(*column(found, arm, setting)):>15}" for _, column in columns)
                lines.append(f"{name:<34} {size} {found.rates[part, arm.label]:>6} {cells}")
        majority = [found.of(arms[0], n, "majority") for n in arms[0].lengths]
        if found.config.study in ("list_ops", "long_range", "passkey") and majority[0]:
            lines.append(f"{'  the commonest answer':<34} {'':>14} " + " ".join(f"{_cell(m):>15}" for m in majority))
        lines.append("")
    return lines


def _settings(config: RunConfig) -> list[str]:
    if config.study == "collapse":
        return [setting.label for setting in config.settings]
    return list(CONDITIONS) if config.study == "verbatim" else [""]


Column = tuple[str, Callable[[Results, Arm, str], tuple[Any, ...]]]


def _columns(config: RunConfig, arms: Sequence[Arm]) -> list[Column]:
    """Of a part's table: a heading, and the arguments of `_cell`."""

    def at(n: int, measure: str = "accuracy", step: int | None = None) -> Callable[..., tuple[Any, ...]]:
        return lambda found, arm, setting: (found.of(arm, n, measure, setting, step),)

    lengths = sorted({n for arm in arms for n in arm.lengths})
    if config.study == "collapse":
        return [(f"episode {k}", at(k)) for k in episodes(max(lengths))]
    if config.study == "translation":
        steps = [arms[0].steps * k // config.readings for k in range(1, config.readings + 1)]
        return [(f"step {step}", at(max(lengths), step=step)) for step in steps]
    if config.study == "verbatim":
        hard = max(lengths)
        cell = lambda gap: lambda found, arm, s: (found.of(arm, gap, "surprisal", f"{s} {hard}"), 1, s != "repeat")
        return [(f"{hard} nouns, {gap}", cell(gap)) for gap in config.gaps]
    columns: list[Column] = [(f"at {n}", at(n)) for n in lengths]
    if config.study == "passkey":
        columns.append(("longest >= .9", lambda found, arm, setting: (longest(found, arm), 0)))
    return columns


def episodes(last: int) -> list[int]:
    """1, 2, 4, ... and the last one."""
    return sorted({2**k for k in range(last.bit_length()) if 2**k <= last} | {last})


def panels(config: RunConfig, rows: Sequence[Row]) -> tuple[str, str, Panels]:
    """What is drawn: the name of x, that of y, and for each panel its curves by label."""
    found = Results(config, rows)
    out: Panels = {}
    add = functools.partial(add_curve, out)
    for arm in config.arms:
        curve = [(float(n), found.of(arm, n)) for n in sorted(arm.lengths)]
        if config.study == "collapse":
            for setting in config.settings:
                points = [(k, found.of(arm, k, setting=setting.label)) for k in range(1, max(arm.lengths) + 1)]
                add(f"{arm.part}, {arm.label}", setting.label, points)
        elif config.study == "translation":
            steps = [arm.steps * k // config.readings for k in range(1, config.readings + 1)]
            add(arm.part, arm.label, [(step, found.of(arm, max(arm.lengths), step=step)) for step in steps])
        elif config.study == "verbatim":
            for nouns in arm.lengths:
                for condition in CONDITIONS:
                    points = [(gap, found.of(arm, gap, "surprisal", f"{condition} {nouns}")) for gap in config.gaps]
                    add(f"{condition}, {nouns} nouns", arm.label, points)
        else:
            add(arm.part, arm.label, curve)
            if config.study == "copying" and arm.state_floats:
                add("by length over state", arm.label, [(x / arm.state_floats, values) for x, values in curve])
    if config.study in ("recall", "passkey"):
        out.clear()
        measure = (lambda arm: found.of(arm, arm.lengths[0])) if config.study == "recall" else functools.partial(
            longest, found
        )  # fmt: skip
        for part in found.parts:
            sized = sorted(found.arms(part, ""), key=lambda arm: arm.state_floats)
            for kind in dict.fromkeys(arm.label.partition("_n")[0] for arm in sized):
                of_kind = [arm for arm in sized if arm.label.partition("_n")[0] == kind]
                largest = max([1, *(arm.state_floats for arm in sized)])
                # What remembers all tokens stands behind every fixed state.
                add(part, kind, [(arm.state_floats or 2 * largest, measure(arm)) for arm in of_kind])
    x = {"collapse": "episode", "translation": "step", "verbatim": "gap, words"}.get(config.study, "length")
    y = {"verbatim": "surprisal, % of the first list's", "passkey": "longest context"}.get(config.study, "accuracy")
    return "floats of a layer's state" if config.study in ("recall", "passkey") else x, y, out


def write(config: RunConfig, rows: Sequence[Row], workdir: Path) -> str:
    """Writes table.txt and, where matplotlib is installed, the figure; returns what to print."""
    text = table(config, rows)
    (workdir / "table.txt").write_text(text, encoding="utf-8")
    x_name, y_name, found = panels(config, rows)
    log_x, log_y = config.study in ("collapse", "recall", "passkey"), config.study == "passkey"
    path = workdir / f"{config.study}.png"
    drawn = functools.partial(draw, found, x_name, y_name, path, log_x=log_x, log_y=log_y)
    return text + "\n" + study.figures(drawn)
