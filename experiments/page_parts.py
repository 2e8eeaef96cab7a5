"""What generated parts of pages are made of: sentences of docstrings, registered methods, families, tables."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxlm.core import registry
from jaxlm.core.config import make, require

FAMILIES = "results/families/results.json"


def sentences(doc: str) -> str:
    """A docstring's first paragraphs as one line each."""
    return re.sub(r"\s+", " ", doc).strip()


_END = r"(?<! al)\.(?= [A-Z]|$)"  # of a sentence


def claim(doc: str, word: str) -> str:
    """The sentence of a file's head that begins with ``word:``, without it; empty if there is none."""
    found = re.search(rf"\b{word}: (.*?){_END}", sentences(doc))
    return found.group(1) if found else ""


def formula(doc: str) -> str:
    """A file's head up to what is learned: what the method is, with its formula."""
    return sentences(doc).partition("Learned:")[0].strip().rstrip(".")


def head_of(method: Any) -> str:
    """The docstring of a method's file."""
    return inspect.getdoc(importlib.import_module(type(method).__module__)) or ""


def used_by(kind: str, root: Path) -> dict[str, list[str]]:
    """Families of checkpoints to what their recorded models have: of ``"encodings"`` or ``"mixers"``."""
    path = root / FAMILIES
    require(path.is_file(), f"{path} does not exist; run python -m tests.interop.report")
    return json.loads(path.read_text(encoding="utf-8")).get(kind, {})


def families(used: dict[str, list[str]], name: str) -> str:
    """Families with recorded models that have the method."""
    found = [family for family, names in used.items() if name in names]
    shown = found[:6] + ["..."] * (len(found) > 6)
    return f"{len(found)}: {', '.join(shown)}" if found else "-"


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    row = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return "\n".join([row(head), row(["---"] * len(head)), *map(row, lines)])


def of_the_library(kind: str) -> list[tuple[str, Any]]:
    """Registered methods by name, without those that a user or a test has added to the registry of this process."""
    made = ((name, make(kind, name)) for name in sorted(registry.methods(kind)))
    return [(name, method) for name, method in made if type(method).__module__.startswith("jaxlm.")]
