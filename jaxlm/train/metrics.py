"""Where numbers go: ``metrics.jsonl`` always, TensorBoard, wandb or trackio when asked for by name.

``metrics.jsonl`` holds one JSON object per line, ``{"step": 10, "loss": 2.5, ...}``, flushed as it is written. JSON has
no NaN, so a value that is not finite is the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``; `read_jsonl` (and
Python's `float`) turns it back. A run resumed from step s drops the lines after s first, so that in the end the file
has the lines of an uninterrupted run, each once.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxlm.core.errors import ConfigError, choose

FILE = "metrics.jsonl"


class Writer(Protocol):
    """Takes the metrics of a step; steps never go back."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Jsonl:
    """Appends to a file of JSON lines; see the module's docstring.

    Args:
      path: of the file; its folder exists.
      resume_step: the step a resumed run continues from (later lines are dropped); None to start over.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None):
        self._path = Path(path)
        try:
            truncate(self._path, resume_step)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {self._path}: {error.strerror}") from None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        line = {"step": step} | {name: _encode(value) for name, value in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files in the workdir, through tensorboardX."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], resume_step: int | None):
        writer = _extra("tensorboard", "tensorboardX").SummaryWriter
        # purge_step hides what an interrupted run logged from there on
        self._writer = writer(str(workdir / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1)
        if resume_step is None:
            self._writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```", 0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        self._writer.close()


class _Tracker:
    """wandb, and trackio, which has the same calls. A run's name is kept in its workdir, so resuming continues it."""

    def __init__(self, name: str, workdir: Path, config: Mapping[str, Any]):
        self._module = _extra(name, name)
        self.run_name = _kept_name(workdir / f"{name}_run.txt", workdir.name)
        self.project, self.config = workdir.parent.name or "jaxlm", dict(config)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._module.log({name: float(value) for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self._module.finish()


class Wandb(_Tracker):
    """Weights & Biases; the project is the workdir's parent folder. WANDB_MODE=offline keeps the data here."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], resume_step: int | None):
        del resume_step  # wandb itself ignores steps it has seen
        super().__init__("wandb", workdir, config)
        project = {"project": self.project, "id": self.run_name, "name": workdir.name, "dir": str(workdir)}
        self._module.init(**project, config=self.config, resume="allow")


class Trackio(_Tracker):
    """trackio, a local-first tracker; the project is the workdir's parent folder."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], resume_step: int | None):
        del resume_step
        super().__init__("trackio", workdir, config)
        self._module.init(project=self.project, name=self.run_name, config=self.config, resume="allow")


class Several:
    """Writes to each of several writers."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


WRITERS: dict[str, Callable[[Path, Mapping[str, Any], int | None], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


def open_writers(
    names: Iterable[str], workdir: str | os.PathLike[str], config: Mapping[str, Any], resume_step: int | None = None
) -> Writer:
    """``metrics.jsonl`` in the workdir and the named writers. In a run of several processes, call it in the first only.

    Args:
      names: of `WRITERS`.
      workdir: an existing folder.
      config: the resolved configuration, JSON-ready, shown by the trackers.
      resume_step: the step the run continues from; None for a fresh one.

    Raises `ConfigError` for an unknown name, a writer that is not installed, or a folder that cannot be written.
    """
    workdir = Path(workdir).absolute()
    named = [WRITERS[choose("metrics writer", name, WRITERS)](workdir, config, resume_step) for name in names]
    return Several([Jsonl(workdir / FILE, resume_step), *named])


def truncate(path: Path, last_step: int | None) -> None:
    """Drops the lines after ``last_step`` (None: all), and one torn by a crash, all at once or not at all."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    steps = [(_step(line), line) for line in text.splitlines()]
    kept = [line for step, line in steps if step is not None and last_step is not None and step <= last_step]
    new = "".join(line + "\n" for line in kept)
    if new != text:
        beside = path.with_name(path.name + ".tmp")
        with beside.open("w", encoding="utf-8") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The lines of a metrics file as dicts of numbers."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [{k: float(v) if isinstance(v, str) else v for k, v in json.loads(line).items()} for line in lines]


def _encode(value: Any) -> float | int | str:
    if isinstance(value, int):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _kept_name(path: Path, prefix: str) -> str:
    """A run name that is unique, yet the same each time the workdir is resumed."""
    if not path.exists():
        path.write_text(f"{prefix}-{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _extra(writer: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"metrics writer {writer!r} needs {module}: pip install 'jaxlm[log]'") from None
