"""The tables of results: every committed one with where it comes from, and the studies with what they asked and found.

``studies: index`` has a line for each committed result, ``studies: claims`` one for each study that has a preset.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from experiments import flags
from experiments.committed import Result, results, stale
from experiments.page_parts import table
from jaxlm.core.errors import choose

PARTS = ("index", "claims")


def block(name: str, root: Path, beside: Path) -> str:
    """One of `PARTS`, for a page in the folder ``beside``."""
    choose("part of the results' page", name, PARTS)
    return (index if name == "index" else claims)(root, beside)


def index(root: Path, beside: Path) -> str:
    """Where each result comes from."""
    lines = []
    for one in results(root):
        last, reason = one.runs[-1], stale(one)
        machine = f"{last['hardware']['cores']} cores ({last['hardware']['cpu']})"
        devices = ", ".join(kind for kind in last["hardware"]["devices"] if kind != "cpu")
        seconds = sum(run.get("seconds", 0) for run in one.runs)
        lines.append(
            [
                f"[{one.name.removeprefix('results/')}]({_link(root / _file(one, root), beside)})",
                f"`{one.command}`",
                one.commits,
                last["date"][:10],
                f"jax {last['versions']['jax']}, flax {last['versions']['flax']}, Python {last['python']}",
                machine + (f", {devices}" if devices else ""),
                f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s" if seconds else "-",
                "-" if reason is None else f"STALE: {reason}" if reason else "current",
            ]
        )
    head = ["result", "command", "commit", "date", "versions", "hardware", "wall time", "preset"]
    return table(head, lines)


def claims(root: Path, beside: Path) -> str:
    """What each study asked, how many of its lines passed, and where it is told."""
    told = _told(root)
    lines = []
    for one in results(root):
        if one.config is None or not one.source:
            continue
        module, _ = flags.load(one.source)
        preset = one.source.partition(":")[2]
        text = (root / one.name / "table.txt").read_text(encoding="utf-8")
        figures = [_link(path, beside) for path in sorted((root / one.name).glob("*.png"))]
        where = told.get(one.name)
        lines.append(
            [
                one.name.removeprefix("results/"),
                getattr(module, "PRESETS", {}).get(preset, ""),
                verdicts(text),
                ", ".join(f"[{Path(path).stem}]({path})" for path in figures) or "-",
                f"[{where.stem}]({_link(where, beside)})"
                if where
                else f"[table]({_link(root / one.name / 'table.txt', beside)})",
                f"`{one.command}`",
            ]
        )
    return table(["study", "asks", "lines that pass", "figures", "found", "command"], lines)


def verdicts(text: str) -> str:
    """How many lines of a study's table pass; ``-`` for a table without claims."""
    part = next((part for part in text.split("\n\n") if part.startswith("line ")), "")
    found = [re.split(r"\s{2,}", line)[-1] for line in part.splitlines()[1:]]
    if not found:
        return "-"
    good = [one for one in found if one.startswith("pass")]
    median, idle = (sum(word in one for one in good) for word in ("pass by median", "not converged"))
    but = [f"{median} by the median only"] * bool(median) + [f"{idle} with runs that did not converge"] * bool(idle)
    return f"{len(good)} of {len(found)}" + (f" ({', '.join(but)})" if but else "")


def _told(root: Path) -> dict[str, Path]:
    """Result folders to the page that shows them."""
    found = {}
    for page in sorted((root / "docs").rglob("*.md")):
        for kind, name in re.findall(r"<!-- (found|table): (\S+) -->", page.read_text(encoding="utf-8")):
            found.setdefault(name if kind == "found" else name.rpartition("/")[0], page)
    return found


def _file(one: Result, root: Path) -> str:
    """What a reader wants to see of a result."""
    if one.name.endswith(".json"):
        text = one.name.removesuffix(".json") + ".txt"
        return next((name for name in (text, f"{one.folder}/table.txt") if (root / name).exists()), one.name)
    return f"{one.name}/table.txt"


def _link(path: Path, beside: Path) -> str:
    return Path(os.path.relpath(path, beside)).as_posix()
