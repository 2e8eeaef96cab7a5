"""Edits instead of the whole text: what a rewriting model has to say when most words stay (paraphrase, correction).

Paper: Kaneko and Okazaki 2023, Reducing Sequence Length by Predicting Edit Spans with Large Language Models. An edit
(start, stop, words) replaces the source's words start..stop - 1; an insertion has start = stop. As text, numbers and
words with a comma between edits; a deletion has the word None, and a text that stays as it is is None:

    1 2 over , 7 8 None , 11 11 jumps

Edits are applied from the last to the first, so all positions are the source's. What a model writes may be no edits:
`read` drops what is not and counts why.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Iterable, Sequence

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import shown

NOTHING, BETWEEN = "None", ","
REASONS = ("unreadable", "backwards", "beyond", "overlap")


@dataclasses.dataclass(frozen=True, order=True)
class Edit(Spec):
    """Words ``start..stop - 1`` of the source become ``words`` (none: a deletion)."""

    start: int
    stop: int
    words: tuple[str, ...] = ()


def diff(source: Sequence[str], target: Sequence[str]) -> tuple[Edit, ...]:
    """The edits that make ``target`` of ``source``, in order (Ratcliff and Obershelp 1988, as Python's difflib)."""
    codes = difflib.SequenceMatcher(None, source, target, autojunk=False).get_opcodes()
    return tuple(Edit(a, b, tuple(target[c:d])) for kind, a, b, c, d in codes if kind != "equal")


def apply(source: Sequence[str], edits: Iterable[Edit]) -> list[str]:
    """The edited words. Raises `ConfigError` for edits that overlap, run backwards or go beyond the source."""
    ordered = sorted(edits, key=lambda edit: (edit.start, edit.stop))
    good, dropped = _sound(ordered, len(source))
    require(len(good) == len(ordered), f"edits of {len(source)} words: {', '.join(dropped)} in {shown(ordered)}")
    out = list(source)
    for edit in reversed(good):
        out[edit.start : edit.stop] = edit.words
    return out


def write(edits: Sequence[Edit]) -> str:
    """The edits as text. Raises `ConfigError` for words that could not be read back: ``,``, ``None``, white space."""
    for edit in edits:
        wrong = [w for w in edit.words if w == BETWEEN or w.split() != [w] or (w == NOTHING and len(edit.words) == 1)]
        require(not wrong, f"an edit's word {wrong[:1]} cannot be told from the marks of the text form")
    parts = [f"{edit.start} {edit.stop} {' '.join(edit.words) or NOTHING}" for edit in edits]
    return f" {BETWEEN} ".join(parts) or NOTHING


def read(text: str, length: int) -> tuple[tuple[Edit, ...], collections.Counter[str]]:
    """(the edits that can be applied to a source of ``length`` words, how many were dropped for each of `REASONS`).

    Unreadable is what does not begin with two numbers or has no word; backwards has start > stop; beyond reaches over
    the source's end; of two that overlap the later is dropped. Two insertions at one place stand in their order.
    """
    dropped: collections.Counter[str] = collections.Counter()
    if text.split() == [NOTHING]:
        return (), dropped
    found, words = [], text.split()
    while words:
        end = words.index(BETWEEN) if BETWEEN in words else len(words)
        part, words = words[:end], words[end + 1 :]
        if len(part) < 3 or not all(word.isascii() and word.isdigit() and len(word) < 19 for word in part[:2]):
            dropped["unreadable"] += 1
        else:
            found.append(Edit(int(part[0]), int(part[1]), () if part[2:] == [NOTHING] else tuple(part[2:])))
    if not text.split():
        dropped["unreadable"] += 1
    good, wrong = _sound(sorted(found, key=lambda edit: (edit.start, edit.stop)), length)
    return tuple(good), dropped + wrong


def _sound(edits: Iterable[Edit], length: int) -> tuple[list[Edit], collections.Counter[str]]:
    """Of edits in the order of their places, those that can be applied together, and why not the others."""
    good: list[Edit] = []
    dropped: collections.Counter[str] = collections.Counter()
    for edit in edits:
        if not 0 <= edit.start <= edit.stop:
            dropped["backwards"] += 1
        elif edit.stop > length:
            dropped["beyond"] += 1
        elif good and edit.start < good[-1].stop:
            dropped["overlap"] += 1
        else:
            good.append(edit)
    return good, dropped
