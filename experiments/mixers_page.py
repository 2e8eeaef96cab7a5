"""Writes docs/mixers.md: every sequence mixer in one table, by what it remembers and how it runs.

Nothing in it is written by hand: what a mixer is stands at the head of its file, its state is counted from the one that
`init_state` makes, its parallel form and its back ends are those of the op it calls, the families come from the record
of imported checkpoints, and the studies from results that are committed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import flags

from experiments import command
from experiments.positions_page import claim, families, formula, of_the_library, sentences, table
from jaxlm.core.config import make, require
from jaxlm.core.types import Dims

FLAGS = flags.FlagValues()
OUT = flags.DEFINE_string("out", "docs/mixers.md", "the page", flag_values=FLAGS)
STUDIES = flags.DEFINE_string("studies", "results/state_space", "folder of the studies' workdirs", flag_values=FLAGS)
FAMILIES = flags.DEFINE_string(
    "families", "results/families/results.json", "results of the families' report", flag_values=FLAGS
)

WIDTH, LENGTHS = 256, (1024, 2048)

HEAD = f"""# Sequence mixers

Every mixer is one file in `jaxlm/mixer/`; the slot is `Block.mixer`, and a pattern of blocks makes a hybrid. Written by
`python -m experiments.mixers_page`; do not edit.

    jaxlm.Block(mixer="mamba2", ffn=None)                                    # by name
    jaxlm.Group(pattern=(jaxlm.Block(mixer="gla"), jaxlm.Block(mixer=jaxlm.Attention(heads=4))), repeats=6)

One call serves a full pass, a prefill in pieces and single steps, with padding anywhere and documents packed in a row;
initial and final states have gradients. `tests/mixer/test_laws.py` holds every mixer to that, none of them by name. A
new mixer with a state of fixed size: a frozen dataclass on `jaxlm.mixer.recurrent.Recurrent` in a file of its own, a
line in `jaxlm/mixer/__init__.py`, a line in the list of the laws.

**State** counts the numbers that one layer of width {WIDTH} keeps for a row, at the mixer's defaults; `n a token`
grows with the text. **Runs** says how a whole row is computed, **back ends** with what: `xla` runs anywhere, and all
others are tested against `reference`, the specification; the rest are kernels (`pallas_kernels/`).
"""


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


def studies(folder: Path, name: str) -> str:
    """The studies that have an arm with the mixer, by name."""
    found = []
    for path in sorted(folder.glob("*/config.json")):
        if f'"name": "{name}"' in path.read_text(encoding="utf-8") and (path.parent / "table.txt").is_file():
            found.append(f"[{path.parent.name}](../{path.parent.as_posix()}/table.txt)")
    return ", ".join(found) or "-"


def page(used: dict[str, list[str]], folder: Path) -> str:
    def line(name: str, mixer: Any) -> list[str]:
        doc = inspect.getdoc(importlib.import_module(type(mixer).__module__)) or ""
        return [
            f"`{name}`",
            formula(doc),
            claim(doc, "Learned"),
            state(mixer),
            runs(mixer),
            back_ends(mixer),
            families(used, name),
            studies(folder, name),
            mixer.paper,
        ]

    lines: Iterable[list[str]] = (line(*one) for one in of_the_library("mixer"))
    head = ["name", "what", "learned", "state", "runs", "back ends", "families", "studies", "paper"]
    return f"{HEAD}\n{table(head, lines)}\n"


def main() -> int:
    path = Path(FAMILIES.value)
    require(path.is_file(), f"{path} does not exist; run python -m tests.interop.report")
    used = json.loads(path.read_text(encoding="utf-8")).get("mixers", {})
    out = Path(OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(used, Path(STUDIES.value)), encoding="utf-8")
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
