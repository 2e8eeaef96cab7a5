"""The tables of docs/positions.md: every position encoding, rotary scaling and training-free extension.

Nothing in them is written by hand: what a method is and claims stands at the head of its file, how it is cached follows
from its hooks, what it does beyond the training length is in the results of `experiments.context_extension`, and which
checkpoints have it in those of the families' report. `python -m experiments.results_page` puts them into the page.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments import study
from experiments.context_extension_report import Row, by_seed, excess
from experiments.page_parts import claim, families, formula, head_of, of_the_library, table, used_by
from jaxlm.core.errors import choose
from jaxlm.core.types import Dims, PositionEncoding
from jaxlm.model.extend import METHODS

RESULTS = "results/context_extension/study"
PARTS = ("encodings", "scalings", "extensions", "measured")


def block(name: str, root: Path, beside: Path) -> str:
    """One of `PARTS`. Raises `ConfigError` for another name, and where the results are missing."""
    del beside
    choose("part of the positions' page", name, PARTS)
    rows = study.read(root / RESULTS, Row)
    original, longest = min(row.length for row in rows), max(row.length for row in rows)
    beyond = ["rise to 4x", f"rise to {longest // original}x"]
    if name == "measured":
        seeds = len({row.seed for row in rows})
        return (
            "**Rise** is measured, not claimed: by how many nats per byte the loss of the last 32 bytes of a window "
            f"rises, or falls,\nfrom the training length L = {original} to 4x and to {longest // original}x of it, "
            f"mean of {seeds} seeds and (least, most), of small\nmodels on source code; `-` was not measured. The "
            f"study is `{RESULTS}`."
        )
    if name == "extensions":
        return extensions(rows, original, beyond)
    return (encodings if name == "encodings" else scalings)(rows, original, beyond, used_by("encodings", root))


def encodings(rows: list[Row], original: int, beyond: list[str], used: dict[str, list[str]]) -> str:
    """Every encoding."""
    arms, lines = {row.arm for row in rows}, []
    for name, encoding in of_the_library("position"):
        doc = head_of(encoding)
        measured = rise(rows, [name, *sorted(arm for arm in arms if arm.startswith(f"{name}_"))], original)
        lines.append(
            [f"`{name}`", formula(doc), claim(doc, "Learned"), cache_rule(encoding), *measured, families(used, name)]
            + [encoding.paper]
        )
    return table(["name", "what", "learned", "cache", *beyond, "families", "paper"], lines)


def scalings(rows: list[Row], original: int, beyond: list[str], used: dict[str, list[str]]) -> str:
    """Every scaling of the rotary encoding."""
    arms, lines = {row.arm for row in rows}, []
    for name, scaling in of_the_library("rotary_scaling"):
        doc = head_of(scaling)
        rule = "plain keys" if scaling.by_length else "rotated keys"
        plain = rise(rows, [name], original)
        trained = rise(rows, sorted(arm for arm in arms if arm.startswith(f"tuned_{name}_")), original)
        lines.append(
            [f"`{name}`", formula(doc), claim(doc, "Learned"), rule, *plain, trained[0], families(used, name)]
            + [scaling.paper]
        )
    head = ["name", "what", "learned", "cache", *beyond, "after fine-tuning, 4x", "families", "paper"]
    return table(head, lines)


def extensions(rows: list[Row], original: int, beyond: list[str]) -> str:
    """Every way of `jaxlm.extend`."""
    lines = [
        [
            f"`{name}`",
            way.what,
            "yes" if way.constant else "no",
            *rise(rows, ["rotary" if name == "none" else name], original),
        ]
        for name, way in METHODS.items()
    ]
    return table(["name", "what", "constant memory", *beyond], lines)


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
