"""What the papers claim of the studies of `experiments.state_space`, as lines that results pass or miss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.claims import Line, between
from experiments.state_space_plan import Arm, RunConfig

ABOVE_CHANCE = 0.1  # a run whose score is not that much above chance has not left it
FORGOTTEN = 95.0  # % of the first list's surprisal, above which a model has not learned that lists come again
CONVERGED = 0.95  # accuracy in the first episode, below which the study of collapse reads nothing


class Row(NamedTuple):
    """One line of results.csv; ``setting``, ``at``, ``measure`` and ``value`` are those of a reading."""

    part: str
    arm: str
    rate: str
    seed: int
    step: int
    setting: str
    at: int
    measure: str
    value: float


class Results:
    """The rows of a study at each arm's best learning rate."""

    def __init__(self, config: RunConfig, rows: Sequence[Row]):
        self.config = config
        self.rates = {(a.part, a.label): best_rate(rows, a.part, a.label, config.seeds[0]) for a in config.arms}
        self.rows = [row for row in rows if self.rates.get((row.part, row.arm)) == row.rate]

    def of(
        self, arm: Arm, at: int = 0, measure: str = "accuracy", setting: str = "", step: int | None = None
    ) -> dict[int, float]:
        """The value by seed, at the end of training unless another step is named; empty where there is none."""
        wanted = (arm.part, arm.label, arm.steps if step is None else step, setting, at, measure)
        return {
            row.seed: row.value
            for row in self.rows
            if (row.part, row.arm, row.step, row.setting, row.at, row.measure) == wanted
        }

    def arms(self, part: str, like: str) -> list[Arm]:
        """The arms of a part that have results and whose label begins with ``like``."""
        ran = {(row.part, row.arm) for row in self.rows}
        return [a for a in self.config.arms if a.part == part and a.label.startswith(like) and (part, a.label) in ran]

    @property
    def parts(self) -> list[str]:
        return list(dict.fromkeys(arm.part for arm in self.config.arms))

    def chance(self, arm: Arm) -> float:
        """The accuracy of one that knows the answers' frequencies, or the values of its row, alone."""
        if self.config.study == "recall":
            return 1 / arm.lengths[0]
        found = [
            row.value for row in self.rows if (row.part, row.arm, row.measure) == (arm.part, arm.label, "majority")
        ]
        return float(np.mean(found)) if found else 0.0

    def idle(self, arm: Arm) -> frozenset[int]:
        """The seeds in which the arm has not learned its task: marked everywhere, left out nowhere."""
        if self.config.study == "verbatim":  # the easiest list that comes again is as surprising as the first was
            found = self.of(arm, min(self.config.gaps), "surprisal", f"repeat {min(arm.lengths)}")
            return frozenset(seed for seed, value in found.items() if value > FORGOTTEN)
        if self.config.study == "collapse":
            found, bar = self.of(arm, 1, setting=self.config.settings[0].label), CONVERGED
        else:
            found, bar = self.of(arm, measure="score"), self.chance(arm) + ABOVE_CHANCE
        return frozenset(seed for seed, value in found.items() if value < bar)

    def line(self, claim: str, limit: float, at_least: bool, values: Mapping[int, float], *arms: Arm) -> Iterator[Line]:
        """The line about ``arms``, if there are values."""
        if values:
            yield Line(claim, limit, at_least, values, frozenset().union(*map(self.idle, arms)))


def best_rate(rows: Sequence[Row], part: str, arm: str, seed: int) -> str:
    """The learning rate with the highest score of the first seed at the end of training; "" if there is none."""
    scores = [
        (row.step, row.value, row.rate)
        for row in list(rows)
        if (row.part, row.arm, row.seed, row.measure) == (part, arm, seed, "score")
    ]
    return max(scores)[2] if scores else ""


def recall(found: Results) -> Iterator[Line]:
    for part in found.parts:
        for arm in found.arms(part, "attention"):
            yield from found.line(f"{part}: attention recalls", 0.95, True, found.of(arm, arm.lengths[0]), arm)
        sizes = sorted(found.arms(part, "mamba2"), key=lambda arm: arm.state_floats)
        if len(sizes) < 2:
            continue
        curves = [found.of(arm, arm.lengths[0]) for arm in sizes]
        rises = [between(b, a) for a, b in zip(curves, curves[1:], strict=False)]
        seeds = set.intersection(*(set(rise) for rise in rises))
        steps = {seed: min(rise[seed] for rise in rises) for seed in seeds}
        yield from found.line(f"{part}: {sizes[-1].label} recalls", 0.95, True, curves[-1], sizes[-1])
        yield from found.line(f"{part}: {sizes[0].label} does not", 0.4, False, curves[0])
        yield from found.line(f"{part}: least rise of mamba2 from state to next larger", -0.05, True, steps, *sizes[1:])


def copying(found: Results) -> Iterator[Line]:
    for part in found.parts:
        for arm in found.arms(part, "attention"):
            full = arm.task.train_lengths[1]
            yield from found.line(f"{arm.label} copies {full}", 0.95, True, found.of(arm, full), arm)
        sizes = sorted(found.arms(part, "mamba2"), key=lambda arm: arm.state_floats)
        for arm in sizes[:1]:
            full = arm.task.train_lengths[1]
            yield from found.line(f"{arm.label} cannot copy {full}", 0.6, False, found.of(arm, full), arm)
            yield from found.line(f"{arm.label} copies {full // 4}", 0.9, True, found.of(arm, full // 4), arm)
        for arm in sizes:
            bits = knees(found, arm)
            yield from found.line(f"{arm.label}: bits per state float at the knee", 0.5, True, bits, arm)
            yield from found.line(f"{arm.label}: bits per state float at the knee", 2.0, False, bits, arm)


def knees(found: Results, arm: Arm, level: float = 0.75) -> dict[int, float]:
    """By seed, l log2(symbols) / (floats of the first layer's state) where accuracy falls through ``level``; for one
    that never does, the longest l, which is then a lower bound."""
    curves = [(n, found.of(arm, n)) for n in sorted(arm.lengths)]
    symbols = arm.task.vocab_size - 4
    out = {}
    for seed in curves[0][1]:
        points = [(n, values[seed]) for n, values in curves if seed in values]
        length = float(points[-1][0])
        for (a, above), (b, below) in zip(points, points[1:], strict=False):
            if above >= level > below:
                length = a + (b - a) * (above - level) / (above - below)
                break
        else:
            length = length if points[0][1] >= level else 0.0
        out[seed] = length * math.log2(symbols) / arm.state_floats
    return out


def tracing(found: Results) -> Iterator[Line]:
    """By how much accuracy falls where only the whole becomes longer, and where the look-back is not bounded."""
    ends = {}
    for part in found.parts:
        for arm in found.arms(part, "mamba2"):
            trained, twice = arm.task.train_lengths[1], 2 * arm.task.train_lengths[1]
            ends[arm.task.lookback] = found.of(arm, twice), arm
            if 0 < arm.task.lookback <= 2:
                rise = between(found.of(arm, twice), found.of(arm, trained))
                yield from found.line(f"{part}: mamba2, {twice} items over {trained}", -0.05, True, rise, arm)
    if 0 in ends and len(ends) > 1:
        (free, one), (bound, other) = ends[0], ends[min(n for n in ends if n)]
        claim = f"mamba2 at {twice} items, bounded ({other.part}) over not"
        yield from found.line(claim, 0.1, True, between(bound, free), one, other)


def collapse(found: Results) -> Iterator[Line]:
    settings = found.config.settings
    plain = settings[0].label
    forgetting = next((s.label for s in settings if s.forget == 4), None)
    resets = [s.label for s in settings if s.reset]
    for arm in found.config.arms:
        name, trained, last = f"{arm.part}, {arm.label}", arm.task.train_lengths[1], max(arm.lengths)
        if trained == 1:
            late = min(8, last)
            yield from found.line(f"{name}: episode {late}", 0.1, False, found.of(arm, late, setting=plain), arm)
            if forgetting is not None:
                better = found.of(arm, late, setting=forgetting)
                yield from found.line(f"{name}: episode {late}, {forgetting}", 0.4, True, better, arm)
        elif trained >= 4:
            kept = between(
                found.of(arm, last, setting=plain),
                found.of(arm, 1, setting=plain),
                lambda late, early: late / max(early, 1e-9),
            )
            yield from found.line(f"{name}: episode {last} over episode 1", 0.9, True, kept, arm)
        for label in resets:
            exact = found.of(arm, 0, "difference", label)
            yield from found.line(f"{name}: {label} against each episode alone, nats", 1e-3, False, exact)


def longest(found: Results, arm: Arm, level: float = 0.9) -> dict[int, float]:
    """By seed, the longest context up to which accuracy stays at ``level``; 0 if it never is."""
    curves = [(n, found.of(arm, n)) for n in sorted(arm.lengths)]
    out: dict[int, float] = {}
    for seed in curves[0][1]:
        out[seed] = 0.0
        for n, values in curves:
            if values.get(seed, 0.0) < level:
                break
            out[seed] = float(n)
    return out


def passkey(found: Results) -> Iterator[Line]:
    for part in found.parts:
        sizes = sorted(found.arms(part, "mamba2"), key=lambda arm: arm.state_floats)
        reach = [(arm.state_floats, longest(found, arm)) for arm in sizes]
        fits = {}
        for seed in set().union(*(set(values) for _, values in reach)):
            points = [(size, math.log(values[seed])) for size, values in reach if values.get(seed, 0) > 0]
            if len(points) >= 3 and len({y for _, y in points}) > 1:
                fits[seed] = float(np.corrcoef(np.array(points).T)[0, 1])
        claim = "correlation of log(longest context) with the state's floats"
        yield from found.line(claim, 0.9, True, fits, *sizes)


def long_range(found: Results) -> Iterator[Line]:
    for part in found.parts:
        for arm in found.arms(part, "s4"):
            n, fast = max(arm.lengths), arm.label.endswith("_fast")
            accuracy = found.of(arm, n)
            if fast:
                yield from found.line(f"{part}: {arm.label}", 0.3, False, accuracy)
            else:
                yield from found.line(f"{part}: {arm.label}", 0.95, True, accuracy, arm)
            steps = found.of(arm, n, "step_difference")
            yield from found.line(f"{part}: {arm.label}, steps against whole rows", 1e-4, False, steps)


def list_ops(found: Results) -> Iterator[Line]:
    for part in found.parts:
        for arm in found.arms(part, "s4d"):
            n = arm.task.train_lengths[1]
            accuracy, most = found.of(arm, n), found.of(arm, n, "majority")
            yield from found.line(f"{arm.label} above the majority", 0.0, True, between(accuracy, most), arm)
            for other in found.arms(part, "attention"):
                theirs = found.of(other, n)
                more = between(accuracy, theirs)
                yield from found.line(f"{arm.label} above {other.label}", 0.05, True, more, arm, other)
                yield from found.line(f"{other.label} above the majority", 0.0, True, between(theirs, most), other)


def verbatim(found: Results) -> Iterator[Line]:
    config = found.config
    every = [(gap, n) for gap in config.gaps for n in config.arms[0].lengths]
    hard = (min(config.gaps, key=lambda gap: abs(gap - 200)), max(config.arms[0].lengths))

    def of(arm: Arm, condition: str, gap: int, nouns: int) -> dict[int, float]:
        return found.of(arm, gap, "surprisal", f"{condition} {nouns}")

    def over(
        arm: Arm, how: Callable[..., float], condition: str, *, less: bool = False, most: float = math.inf
    ) -> dict[int, float]:
        places = [place for place in every if place[0] <= most]
        cells = [of(arm, condition, *place) for place in places]
        if less:
            cells = [between(cell, of(arm, "repeat", *at)) for cell, at in zip(cells, places, strict=True)]
        return {seed: how(cell[seed] for cell in cells) for seed in (cells or [{}])[0]}

    for part in found.parts:
        by_label = {arm.label: arm for arm in found.arms(part, "")}
        transformer, lstm = by_label.get("transformer"), by_label.get("lstm")
        if transformer:
            yield from found.line("transformer: repeated, greatest of all lists and gaps", 30, False,
                                  over(transformer, max, "repeat"), transformer)  # fmt: skip
            trained = transformer.task.gap[1]
            yield from found.line(f"  of gaps as in training, up to {trained}", 30, False,
                                  over(transformer, max, "repeat", most=trained), transformer)  # fmt: skip
            yield from found.line("transformer: permuted - repeated, least", 20, True,
                                  over(transformer, min, "permute", less=True), transformer)  # fmt: skip
        if lstm:
            cell = f"{hard[1]} nouns, gap {hard[0]}"
            repeated = of(lstm, "repeat", *hard)
            yield from found.line(f"lstm: repeated, {cell}", 70, True, repeated, lstm)
            order = between(of(lstm, "permute", *hard), repeated)
            yield from found.line(f"lstm: permuted - repeated, {cell}", 10, False, order, lstm)
        for name, arm in by_label.items():
            if arm in (transformer, lstm):
                continue
            here = of(arm, "repeat", *hard)
            if transformer and lstm:
                yield from found.line(f"{name} - transformer, repeated, {cell}", 0, True,
                                      between(here, of(transformer, "repeat", *hard)), arm, transformer)  # fmt: skip
                yield from found.line(f"{name} - lstm, repeated, {cell}", 0, False,
                                      between(here, of(lstm, "repeat", *hard)), arm, lstm)  # fmt: skip
            short, few = (min(config.gaps), hard[1]), (hard[0], min(config.arms[0].lengths))
            longest_gap = (max(config.gaps), hard[1])
            worse = between(of(arm, "repeat", *longest_gap), of(arm, "repeat", *short))
            yield from found.line(f"{name}: repeated, longest - shortest gap", 0, True, worse, arm)
            yield from found.line(f"{name}: repeated, most - fewest nouns", 0, True,
                                  between(here, of(arm, "repeat", *few)), arm)  # fmt: skip


def translation(found: Results) -> Iterator[Line]:
    for part in found.parts:
        for kind, at_least in (("", True), ("_attention", False)):
            pair = {order: found.arms(part, f"{order}{kind}") for order in ("reversed", "forward")}
            one, two = ([a for a in arms if a.label == f"{order}{kind}"] for order, arms in pair.items())
            if one and two:
                step, n = one[0].steps // 2, max(one[0].lengths)
                values = between(found.of(one[0], n, step=step), found.of(two[0], n, step=step))
                words = "with attention" if kind else "without attention"
                claim = f"reversed over forward, {words}, at half the steps"
                yield from found.line(claim, 0.1, at_least, values, one[0], two[0])


LINES: dict[str, Callable[[Results], Iterator[Line]]] = {
    "recall": recall,
    "copying": copying,
    "tracing": tracing,
    "collapse": collapse,
    "passkey": passkey,
    "long_range": long_range,
    "list_ops": list_ops,
    "verbatim": verbatim,
    "translation": translation,
}

CLAIMS = {
    "recall": "attention recalls at any width; a state of fixed size loses pairs once they outgrow it "
    "(Arora et al. 2024; Dao and Gu 2024)",
    "copying": "no fixed state copies a string of more bits than it has; attention does (Jelassi et al. 2024)",
    "tracing": "a state of fixed size does dynamic programming of any length if a cell looks back at few others "
    "(Yang et al. 2024)",
    "collapse": "trained on contexts short for its state, a recurrent model never learns to forget and fails beyond; "
    "longer training contexts cure it, forgetting more helps (Chen et al. 2024)",
    "passkey": "the longest context a passkey is found in grows exponentially with the state (Chen et al. 2024)",
    "long_range": "a state space whose slowest steps are 1 / length remembers through noise; fast steps do not "
    "(Gu et al. 2022)",
    "list_ops": "S4 parses nested lists better than attention (Gu et al. 2022)",
    "verbatim": "transformers retrieve words and order of a list at any delay, LSTMs little and without order "
    "(Armeni et al. 2022)",
    "translation": "an LSTM without attention learns faster from a reversed source (Sutskever et al. 2014)",
}
