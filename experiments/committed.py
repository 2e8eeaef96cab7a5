"""Results that are committed: where each comes from, and whether it still is what its command would measure.

A study's result is stale when the preset that its command names resolves to another configuration today than the
config.json beside the result: then the code asks another question than the one that was answered. Fields that came
later have their defaults, as when a run is continued. A change that leaves the configuration as it is (a faster
kernel, say) does not show; what holds those is the tests. Results without a configuration cannot be checked so.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from experiments import flags
from experiments.overrides import override
from jaxlm.core.config import differences, renewed, to_dict
from jaxlm.core.errors import ConfigError

FOLDER = "results"


class Result(NamedTuple):
    """One committed result.

    Attributes:
      name: its folder, or its file where a folder holds several; relative to the checkout, with slashes.
      runs: what `experiments.provenance.collect` wrote at each sitting, first to last.
      config: its config.json; None if it has none.
    """

    name: str
    runs: list[dict[str, Any]]
    config: dict[str, Any] | None

    @property
    def command(self) -> str:
        """What measures all of it: the last sitting's, which may have done a share of the runs."""
        parts = shlex.split(str(self.runs[-1]["command"]))
        return shlex.join(part for part in parts if not part.startswith("--share="))

    @property
    def commits(self) -> str:
        return " and ".join(
            dict.fromkeys(run["commit"][:7] + "*" * run["commit"].endswith("-dirty") for run in self.runs)
        )

    @property
    def folder(self) -> str:
        return self.name if self.config is not None or not self.name.endswith(".json") else self.name.rpartition("/")[0]

    @property
    def source(self) -> str:
        """What the command gives as ``--config``; empty if nothing."""
        return next((part[9:] for part in shlex.split(self.command) if part.startswith("--config=")), "")


def of_folder(folder: Path, root: Path) -> Result:
    """The result in a folder. Raises `ConfigError` for a record that cannot be read."""
    record, config = _json(folder / "provenance.json"), folder / "config.json"
    runs = record if isinstance(record, list) else [record]
    return Result(folder.relative_to(root).as_posix(), runs, _json(config) if config.exists() else None)


def results(root: Path) -> list[Result]:
    """Every committed result, by name. Raises `ConfigError` for a record that cannot be read."""
    found = []
    for path in sorted((root / FOLDER).rglob("*.json")):
        record = _json(path)
        if path.name == "provenance.json":
            found.append(of_folder(path.parent, root))
        elif isinstance(record, dict) and {"command", "commit"} <= record.keys():
            found.append(Result(path.relative_to(root).as_posix(), [record], None))
    return found


def stale(result: Result) -> str | None:
    """Why a result is not of today's preset; ``""`` if it is, None where there is no configuration to compare."""
    if result.config is None or not result.source:
        return None
    try:
        _, config = flags.load(result.source)
        parts = [
            part[2:].removeprefix("config.") for part in shlex.split(result.command) if part.startswith("--config.")
        ]
        config = override(config, [(path, value) for path, _, value in (part.partition("=") for part in parts)])
    except ConfigError as error:
        return str(error)
    fields = {field.name for field in dataclasses.fields(config)}
    today = json.loads(json.dumps(to_dict(config)))
    saved = json.loads(json.dumps(renewed(type(config), result.config)))
    found = differences(today, {name: value for name, value in saved.items() if name in fields})
    told = [f"{path} is {_short(new)} today and was {_short(old)}" for path, (new, old) in found.items()]
    return "; ".join(told[:3]) + f"; and {len(told) - 3} more" * (len(told) > 3)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:56] + " ..."


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
