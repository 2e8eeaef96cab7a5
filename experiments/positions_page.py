"""Writes docs/positions.md: every position encoding, rotary scaling and training-free extension, in one table each.

Nothing in it is written by hand: what a method is and claims stands at the head of its file, how it is cached follows
from its hooks, what it does beyond the training length is in the results of `experiments.context_extension`, and which
checkpoints have it in those of the families' report.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import command, study
from experiments.context_extension_report import Row, by_seed, excess
from jaxlm.core import registry
from jaxlm.core.config import make, require
from jaxlm.core.types import Dims, PositionEncoding
from jaxlm.model.extend import METHODS

FLAGS = flags.FlagValues()
OUT = flags.DEFINE_string("out", "docs/positions.md", "the page", flag_values=FLAGS)
RESULTS = flags.DEFINE_string("results", "results/context_extension/study", "workdir of the study", flag_values=FLAGS)
FAMILIES = flags.DEFINE_string(
    "families", "results/families/results.json", "results of the families' report", flag_values=FLAGS
)

HEAD = """# Position encodings and longer contexts

Every encoding is one file in `jaxlm/position/`, every rotary scaling one in `jaxlm/position/scaling/`; the slot is
`Attention.position`. Written by `python -m experiments.positions_page`; do not edit.

    jaxlm.Attention(heads=8, position="alibi")                       # by name
    jaxlm.Attention(heads=8, position=Rotary(scaling=Yarn(4.0, 8192)))
    longer = jaxlm.extend(model, "self_extend", factor=4, original=8192)    # without training, same parameters

A new encoding: a frozen dataclass on `jaxlm.core.types.PositionEncoding` in a file of its own, a line in
`jaxlm/position/__init__.py`, a line in the list of `tests/position/test_laws.py`.

**Cache** says what is kept of a key. Where the frequencies follow the length of the text, declare it (`length=`) and
pieces, steps and the full pass agree. Left to grow with the text, all cached keys are seen under the current
frequencies: as in a full pass over the text so far in the first layer, and different from it in deeper ones, whose
cached keys were made under earlier frequencies.

**Rise** is measured, not claimed: by how many nats per byte the loss of the last 32 bytes of a window rises, or falls,
from the training length L = {original} to 4x and to {most}x of it, mean of {seeds} seeds and (least, most), of small
models on source code; `-` was not measured. The study is `results/context_extension`.
"""


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


def cache_rule(encoding: PositionEncoding) -> str:
    """What a cache holds of a key, from the encoding's hooks."""
    kind = type(encoding)
    parts = []
    if encoding.by_length:
        parts.append("plain keys, turned under the current or declared length")
    elif not encoding.pre_rotate:
        parts.append("plain keys and their positions")
    elif kind.rotate is not PositionEncoding.rotate and encoding.max_positions() is None:
        parts.append("rotated keys")
    else:
        parts.append("keys")
    if encoding.side_width(Dims(width=8, heads=2, head_dim=4)):
        parts.append("a running sum per head")
    return ", ".join(parts)


def rise(rows: list[Row], arms: Iterable[str], original: int) -> list[str]:
    """Cells for 4x and the longest length, of the first arm that was measured."""
    longest = max((r.length for r in rows), default=original)
    for arm in arms:
        if by_seed(rows, arm, original, "tail"):
            cells = []
            for length in (4 * original, longest):
                found = excess(rows, arm, length, original)
                cells.append(f"{np.mean(found):+.2f} ({min(found):+.2f}, {max(found):+.2f})" if found else "-")
            return cells
    return ["-", "-"]


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


def page(rows: list[Row], used: dict[str, list[str]]) -> str:
    original = min((r.length for r in rows), default=64)
    longest = max((r.length for r in rows), default=64)
    seeds = len({r.seed for r in rows})
    arms = {r.arm for r in rows}
    beyond = ["rise to 4x", f"rise to {longest // original}x"]
    out = [HEAD.format(original=original, most=longest // original, seeds=seeds)]

    lines = []
    for name, encoding in of_the_library("position"):
        doc = _file(encoding)
        measured = rise(rows, [name, *sorted(arm for arm in arms if arm.startswith(f"{name}_"))], original)
        lines.append(
            [f"`{name}`", formula(doc), claim(doc, "Learned"), cache_rule(encoding), *measured, families(used, name)]
            + [encoding.paper]
        )
    out += ["## Encodings", table(["name", "what", "learned", "cache", *beyond, "families", "paper"], lines)]

    lines = []
    for name, scaling in of_the_library("rotary_scaling"):
        doc = _file(scaling)
        rule = "plain keys" if scaling.by_length else "rotated keys"
        plain = rise(rows, [name], original)
        trained = rise(rows, sorted(arm for arm in arms if arm.startswith(f"tuned_{name}_")), original)
        lines.append(
            [f"`{name}`", formula(doc), claim(doc, "Learned"), rule, *plain, trained[0], families(used, name)]
            + [scaling.paper]
        )
    head = ["name", "what", "learned", "cache", *beyond, "after fine-tuning, 4x", "families", "paper"]
    out += ["## Scalings of the rotary encoding", table(head, lines)]

    lines = [
        [
            f"`{name}`",
            way.what,
            "yes" if way.constant else "no",
            *rise(rows, ["rotary" if name == "none" else name], original),
        ]
        for name, way in METHODS.items()
    ]
    out += [
        "## Without training: `jaxlm.extend(model, name, factor=, original=)`",
        "For every model whose layers have rotary positions, imported ones included.",
        table(["name", "what", "constant memory", *beyond], lines),
    ]
    return "\n\n".join(out) + "\n"


def _file(method: Any) -> str:
    return inspect.getdoc(importlib.import_module(type(method).__module__)) or ""


def main() -> int:
    rows = study.read(Path(RESULTS.value), Row)
    path = Path(FAMILIES.value)
    require(path.is_file(), f"{path} does not exist; run python -m tests.interop.report")
    used = json.loads(path.read_text(encoding="utf-8")).get("encodings", {})
    out = Path(OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(rows, used), encoding="utf-8")
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS, __doc__))
