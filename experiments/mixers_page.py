"""The table of docs/mixers.md: every sequence mixer, by what it remembers and how it runs.

Nothing in it is written by hand: what a mixer is stands at the head of its file, its state is counted from the one that
`init_state` makes, its parallel form and its back ends are those of the op it calls, the families come from the record
of imported checkpoints, and the studies from results that are committed. `python -m experiments.results_page` puts it
into the page.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from experiments.page_parts import claim, families, formula, head_of, of_the_library, sentences, table, used_by
from jaxlm.core.config import make
from jaxlm.core.errors import choose
from jaxlm.core.types import Dims

STUDIES = "results/state_space"
WIDTH, LENGTHS = 256, (1024, 2048)


def block(name: str, root: Path, beside: Path) -> str:
    """The table ``"all"``, for a page in the folder ``beside``."""
    choose("part of the mixers' page", name, ("all",))
    used, found = used_by("mixers", root), root / STUDIES

    def line(name: str, mixer: Any) -> list[str]:
        doc = head_of(mixer)
        return [
            f"`{name}`",
            formula(doc),
            claim(doc, "Learned"),
            state(mixer),
            runs(mixer),
            back_ends(mixer),
            families(used, name),
            studies(found, beside, name),
            mixer.paper,
        ]

    head = ["name", "what", "learned", "state", "runs", "back ends", "families", "studies", "paper"]
    return table(head, (line(*one) for one in of_the_library("mixer")))


def op_of(mixer: Any) -> ModuleType | None:
    """The op that a mixer or its bases call: the first `jaxlm.ops` module whose function of the same name they see."""
    for kind in type(mixer).__mro__:
        module = sys.modules.get(kind.__module__)
        for name, found in vars(module).items() if module else ():
            if inspect.isfunction(found) and found.__module__ == f"jaxlm.ops.{name}" and name not in SMALL:
                return importlib.import_module(found.__module__)
    return importlib.import_module("jaxlm.ops.attention") if hasattr(mixer, "position") else None


SMALL = {"dense", "causal_conv", "activation"}  # ops that most mixers use beside their own


def back_ends(mixer: Any) -> str:
    """What the mixer's ``implementation`` may name."""
    op = op_of(mixer)
    found = getattr(op, "IMPLEMENTATIONS", ())
    return ", ".join(f"`{name}`" for name in found) if found and hasattr(mixer, "implementation") else "`xla`"


def runs(mixer: Any) -> str:
    """The first sentence of the op's file."""
    op = op_of(mixer)
    return "" if op is None else sentences(inspect.getdoc(op) or "").partition(". ")[0].rstrip(".")


def state(mixer: Any) -> str:
    """Numbers that one layer keeps for one row."""
    if not (mixer.streaming and mixer.causal):
        return "none: looks ahead"

    def floats(length: int) -> int:
        cache = make("cache", getattr(mixer, "needs_cache", "full"))
        empty = jax.eval_shape(lambda: mixer.init_state(Dims(width=WIDTH, source=length), 1, length, "float32", cache))
        return sum(x.size for x in jax.tree.leaves(empty) if x.dtype == "float32")

    short, long = map(floats, LENGTHS)
    slope = (long - short) // (LENGTHS[1] - LENGTHS[0])
    fixed = short - slope * LENGTHS[0]
    return " + ".join(([f"{fixed:,}"] if fixed else []) + ([f"{slope:,} a token"] if slope else []))


def studies(folder: Path, beside: Path, name: str) -> str:
    """The studies that have an arm with the mixer, by name."""
    found = []
    for path in sorted(folder.glob("*/config.json")):
        if f'"name": "{name}"' in path.read_text(encoding="utf-8") and (path.parent / "table.txt").is_file():
            found.append(f"[{path.parent.name}]({Path(os.path.relpath(path.parent, beside)).as_posix()}/table.txt)")
    return ", ".join(found) or "-"
