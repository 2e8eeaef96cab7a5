"""What the studies of tokenization have in common: arms with seeds, rows on file, claims, a table and a figure.

A study is one file with one class, its run configuration: a frozen dataclass deriving from `Study` that names its arms,
runs one of them for a seed, and says what the paper claims of the results. Finished runs are kept, so an interrupted
study continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from experiments import claims, panels
from experiments import study as frame
from experiments.claims import Line
from experiments.panels import Panels
from jaxlm.core.config import Spec, renewed, require, to_dict
from jaxlm.train.workdir import claim_workdir


class Row(NamedTuple):
    """One line of results.csv; what follows the seed is a `Found`."""

    part: str
    arm: str
    seed: int
    measure: str
    at: int
    setting: str
    value: float


class Found(NamedTuple):
    """One number.

    Attributes:
      measure: what it is.
      value: of it.
      at: where: a length, a step, a vocabulary; 0 where there is but one place.
      setting: how it was read; ``""`` where there is but one way.
    """

    measure: str
    value: float
    at: int = 0
    setting: str = ""


class Arm(NamedTuple):
    """One thing that a study compares.

    Attributes:
      part: of the study; arms of a part share a panel.
      label: its name in tables, figures and results.csv.
      steps: of training, for the progress bar; 0 where nothing is trained.
    """

    part: str
    label: str
    steps: int = 0


Run = Callable[[int], Iterable[Found]]  # of a seed


class Results:
    """The rows of a study."""

    def __init__(self, rows: Iterable[Row]):
        self.rows = sorted(rows)

    def of(self, part: str, arm: str, measure: str, at: int = 0, setting: str = "") -> dict[int, float]:
        """The value by seed; empty where there is none."""
        wanted = (part, arm, measure, at, setting)
        return {r.seed: r.value for r in self.rows if (r.part, r.arm, r.measure, r.at, r.setting) == wanted}

    def curve(self, part: str, arm: str, measure: str, setting: str = "") -> list[tuple[float, dict[int, float]]]:
        """The values by seed at every place, in order."""
        wanted = (part, arm, measure, setting)
        places = sorted({r.at for r in self.rows if (r.part, r.arm, r.measure, r.setting) == wanted})
        return [(float(at), self.of(part, arm, measure, at, setting)) for at in places]

    def last(self, part: str, arm: str, measure: str, setting: str = "") -> dict[int, float]:
        """The value by seed at the last place."""
        found = self.curve(part, arm, measure, setting)
        return found[-1][1] if found else {}


@dataclasses.dataclass(frozen=True)
class Study(Spec):
    """A study and its run configuration.

    Attributes:
      seeds: of data, initial values and draws.
      workers: arms that run at the same time; 0 for one per core on a CPU and one elsewhere.
    """

    name: ClassVar[str]
    claim: ClassVar[str]  # the paper's, in a sentence
    axes: ClassVar[tuple[str, str]] = ("", "")  # of the figure
    log_x: ClassVar[bool] = False

    seeds: tuple[int, ...] = (0,)
    workers: int = 0

    def check(self) -> None:
        require(
            len(set(self.seeds)) == len(self.seeds) > 0,
            f"{type(self).__name__}.seeds: expected distinct seeds, got {self.seeds}",
        )

    def arms(self) -> Sequence[Arm]:
        """What is compared."""
        raise NotImplementedError

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        """What runs an arm with a seed; made once per arm, so that seeds share what is compiled."""
        raise NotImplementedError

    def lines(self, found: Results) -> Iterator[Line]:
        """The claims as lines to pass, of those arms that have results."""
        return iter(())

    def notes(self, found: Results) -> list[str]:
        """What else the table says."""
        return []

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        """A part's table: a heading, and the values by seed of an arm."""
        raise NotImplementedError

    def panels(self, found: Results) -> Panels:
        """What is drawn."""
        raise NotImplementedError


def run(study: Study, workdir: Path) -> list[Row]:
    """Every run of the study that the workdir does not hold yet; returns all rows."""
    held = {(row.part, row.arm, row.seed) for row in frame.read(workdir, Row, missing_ok=True)}
    missing = lambda arm: [seed for seed in study.seeds if (arm.part, arm.label, seed) not in held]

    def work(arm: Arm, progress: frame.Report) -> None:
        one = study.runner(arm, progress)
        for seed in missing(arm):
            began = time.monotonic()
            found = list(one(seed))
            rows = [Row(arm.part, arm.label, seed, f.measure, f.at, f.setting, f.value) for f in found]
            frame.add(rows, workdir, Row)
            seconds, name = time.monotonic() - began, " ".join(filter(None, (arm.part, arm.label)))
            progress.note(f"{name} seed {seed}: {found[-1].measure} {found[-1].value:.4g} ({seconds:.0f} s)")

    # The longest first, so that the cores are all busy to the end.
    arms = frame.share(sorted(study.arms(), key=lambda arm: arm.steps, reverse=True))
    jobs = [arm for arm in arms if missing(arm)]
    steps = sum(arm.steps * len(missing(arm)) for arm in jobs)
    frame.run(jobs, work, workdir, steps=max(1, steps), workers=study.workers)
    return frame.read(workdir, Row, missing_ok=True)


def table(study: Study, found: Results) -> str:
    """The claim, what was found beside each line, and the values of every arm."""
    lines = [*textwrap.wrap(f"{study.name}: {study.claim}", 110), ""]
    lines += claims.table(study.lines(found))
    ran = {(row.part, row.arm) for row in found.rows}
    for part in dict.fromkeys(arm.part for arm in study.arms() if (arm.part, arm.label) in ran):
        columns = study.columns(found, part)
        width = max(20, *(len(name) for name in columns))
        lines += ["", f"{part or 'arm':<34} " + " ".join(f"{name:>{width}}" for name in columns)]
        for arm in study.arms():
            if arm.part == part and (part, arm.label) in ran:
                cells = " ".join(f"{_cell(of(arm.label)):>{width}}" for of in columns.values())
                lines.append(f"  {arm.label:<32} {cells}")
    lines += ["", *study.notes(found)]
    lines += ["", f"median (least, greatest) of seeds {sorted({row.seed for row in found.rows})}"]
    return "\n".join(lines) + "\n"


def _cell(values: dict[int, float]) -> str:
    if not values:
        return "-"
    each = list(values.values())
    shown = lambda x: f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3f}"
    return f"{shown(float(np.median(each)))} ({shown(min(each))}, {shown(max(each))})"


def write(study: Study, workdir: Path) -> str:
    """Writes table.txt and, where matplotlib is installed, the figure, of what is on file; returns what to print."""
    found = Results(frame.read(workdir, Row))
    text = table(study, found)
    (workdir / "table.txt").write_text(text, encoding="utf-8")
    path, (x_name, y_name) = workdir / f"{study.name}.png", study.axes
    drawn = functools.partial(panels.draw, study.panels(found), x_name, y_name, path, log_x=study.log_x)
    return text + "\n" + frame.figures(drawn)


def main(study: Study, workdir: Path, replot: bool) -> None:
    """Runs what is missing, unless only the table and the figure are to be made again, and prints the table."""
    if not replot:
        claim_workdir(workdir, to_dict(study), renew=functools.partial(renewed, type(study)))
        run(study, workdir)
    print(write(study, workdir))
