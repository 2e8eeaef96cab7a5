"""What studies of many small runs have in common: rows kept as CSV, runs beside each other, figures where they can be.

A study's rows are a `NamedTuple` of str, int and float fields. Rows that a workdir holds are not made again, so an
interrupted study continues where it stopped, and several processes may do a `share` of it each, into one workdir.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import os
import re
import threading
import time
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import flags

from experiments import provenance
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.train.progress import Progress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SHARE = flags.DEFINE_string(
    "share", "1/1", "part of the runs that this process does, as 1/2 and 2/2 for two on one workdir (a device each)"
)
flags.register_validator(
    SHARE,
    lambda value: re.fullmatch(r"[0-9]+/[0-9]+", value) and 1 <= int(value.split("/")[0]) <= int(value.split("/")[1]),
    message="expected k/n with 1 <= k <= n, as 1/2",
)
FILE = "results.csv"
DIGITS = 4

R = TypeVar("R", bound=tuple[Any, ...])
J = TypeVar("J", bound=Hashable)
_writing = threading.Lock()


def read(workdir: Path, kind: type[R], missing_ok: bool = False, file: str = FILE) -> list[R]:
    """The rows of a workdir. Raises `ConfigError` for a missing (unless allowed) or foreign file, or a bad line."""
    path = workdir / file
    if not path.exists():
        if missing_ok:
            return []
        raise ConfigError(f"{path} does not exist; run the study first")
    types = typing.get_type_hints(kind)
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        if next(reader, None) != list(types):
            raise ConfigError(f"{path}: expected the columns {','.join(types)}")
        try:
            return [kind(*(make(x) for make, x in zip(types.values(), row, strict=True))) for row in reader]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}, line {reader.line_num}: {error}") from None


def save(rows: Iterable[tuple[Any, ...]], workdir: Path, kind: type, file: str = FILE) -> None:
    """Writes the rows, sorted, all at once; floats with `DIGITS` decimals, or as many digits if they are small."""
    path = workdir / file
    beside = path.with_name(file + ".tmp")
    with beside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(typing.get_type_hints(kind))
        writer.writerows([_written(x) for x in row] for row in sorted(rows))
    os.replace(beside, path)


def add(rows: Iterable[R], workdir: Path, kind: type[R]) -> list[R]:
    """Adds rows to those on file, which other processes may have added to since.

    Returns all as they are on file, rounded: what is decided by them is then decided the same when a study goes on.
    """
    with _alone(workdir):
        save([*read(workdir, kind, missing_ok=True), *rows], workdir, kind)
        return read(workdir, kind)


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Within it no other thread or process writes to the workdir (where the system has such locks)."""
    with _writing, contextlib.ExitStack() as stack:
        if fcntl is not None:
            stack.callback(os.close, there := os.open(workdir, os.O_RDONLY))
            fcntl.flock(there, fcntl.LOCK_EX)  # ends where the folder is closed
        yield


def share(jobs: Sequence[J]) -> Sequence[J]:
    """Those of all of a study's jobs, done or not, that --share leaves to this process."""
    part, _, parts = (SHARE.value if flags.FLAGS.is_parsed() else SHARE.default).partition("/")
    return jobs[int(part) - 1 :: int(parts)]


def folder(flag: Any) -> Path:
    """The folder that a flag names for results; nothing is made yet. Raises `ConfigError` if it cannot be one."""
    path = Path(flag.value)
    require(
        "://" not in str(flag.value),
        f"--{flag.name}={flag.value}: expected a folder of the file system; an object store can be mounted as one",
    )
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    usable = there.is_dir() and os.access(there, os.W_OK)
    require(usable, f"--{flag.name}={path}: {there} is no folder that can be written to")
    return path


def _written(x: Any) -> Any:
    if not isinstance(x, float):
        return x
    return f"{x:.{DIGITS}g}" if 0 < abs(x) < 0.1 else f"{x:.{DIGITS}f}"


class Report:
    """How far a study's runs have come; safe to call from each of them."""

    def __init__(self, steps: int):
        self._progress, self._lock, self._steps = Progress(steps), threading.Lock(), 0

    def steps(self, steps: int, metrics: Mapping[str, Any]) -> None:
        """``steps`` more training steps are done, with their stacked metrics."""
        with self._lock:
            self._steps += steps
            self._progress.update(self._steps, int(metrics["tokens"].sum()), lambda: float(metrics["loss"][-1]))

    def note(self, line: str) -> None:
        """A line of its own, as when a run is finished."""
        with self._lock:
            self._progress.note(line)

    def close(self) -> None:
        self._progress.close()


class Silent:
    """A report that does not count steps: those that arms share are not among an arm's."""

    def __init__(self, report: Report):
        self._report = report

    def steps(self, steps: int, metrics: Any) -> None:
        """Nothing."""

    def note(self, line: str) -> None:
        self._report.note(line)


def run(
    jobs: Sequence[J],
    work: Callable[[J, Report], None],
    workdir: Path,
    *,
    steps: int,
    workers: int = 0,
) -> None:
    """Does all jobs, some at the same time, and writes provenance.json if there was any.

    Args:
      jobs: what there is to do.
      work: does one; it saves its own rows.
      workdir: of the study.
      steps: training steps of all jobs, for the progress bar.
      workers: how many at a time; 0 for one per core on a CPU (of those that this process may use) and one elsewhere.
    """
    if not jobs:
        return
    workers = workers or (_cores() if jax.default_backend() == "cpu" else 1)
    report, began = Report(steps), time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    pending = [pool.submit(work, job, report) for job in jobs]
    try:
        for future in concurrent.futures.as_completed(pending):
            future.result()
    finally:  # an interrupted study leaves rows, too, and says where they come from
        pool.shutdown(cancel_futures=True)
        report.close()
        with _alone(workdir):
            provenance.write(workdir, seconds=time.monotonic() - began, workers=workers)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer than there are under taskset or in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def figures(*draw: Callable[[], Path]) -> str:
    """The figures' paths, a line each, or why there are none."""
    try:
        import matplotlib
    except ImportError:
        return "no figures: matplotlib is missing (pip install 'jaxlm[plots]')"
    matplotlib.use("Agg")
    return "\n".join(f"figure: {one()}" for one in draw)


def saved(figure: Any, path: Path, dpi: int = 120) -> Path:
    """Writes a matplotlib figure and lets go of it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    return path
