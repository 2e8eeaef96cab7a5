"""Measured tile sizes and settings of the back ends, by chip, dtype, head width and pattern.

``tuning/<back end>.json`` holds a list of entries, written by ``python -m experiments.tune_kernels`` on the hardware at
hand and read at call time; what is not in it falls to the back end's own `blocks`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tuning"
KEY = ("chip", "dtype", "width", "pattern")


def lookup(backend: str, chip: str, dtype: str, width: int, pattern: str) -> dict[str, Any] | None:
    """The entry of a call: its ``block_q``, ``block_k`` and ``settings``; None if nothing like it was measured.

    An entry for the chip, dtype and width serves, first of the same pattern, then of ``"causal"``.
    """
    table = entries(backend)
    for name in (pattern, "causal"):
        if found := table.get((chip, dtype, width, name)):
            return found
    return None


@functools.cache
def entries(backend: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """All entries of a back end by `KEY`; none if it has no table."""
    path = FOLDER / f"{backend}.json"
    if not path.exists():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))["entries"]
    return {tuple(entry[name] for name in KEY): entry for entry in table}


def write(backend: str, new: list[dict[str, Any]], record: dict[str, Any]) -> Path:
    """Renews the table of a back end: ``new`` entries take the place of those with the same key.

    ``record`` (command, commit, versions) is kept beside each new entry.
    """
    merged = {**entries(backend), **{tuple(e[name] for name in KEY): {**e, "record": record} for e in new}}
    path = FOLDER / f"{backend}.json"
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps({"entries": [merged[key] for key in sorted(merged)]}, indent=1)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text + "\n", encoding="utf-8")
    scratch.replace(path)
    entries.cache_clear()
    return path
