r"""Lossless splitting of text into pieces that merges do not cross (pre-tokenization), by named rules on bytes.

    space           in front of every space                        "a b  c"  ->  "a", " b", " ", " c"
    lines           behind every newline
    whitespace      runs of ASCII white space are pieces of their own
    gpt2            the expression of Radford et al. 2019, GPT-2
    digits          every digit is a piece
    digits_l2r_N    runs of 0-9 in groups of N from the left, digits of other scripts single (`jaxlm.tokenize.digits`)
    digits_r2l_N    the same from the right
    regex:PATTERN   every match of the expression is a piece, and so is what lies between two matches

Rules are applied one after another, each to the pieces of the one before; the pieces join to the data. Expressions see
bytes that are not UTF-8 as the characters U+DC80..U+DCFF, one a byte, so they survive; which characters are letters is
as new as the package regex is.
"""

from __future__ import annotations

import collections
import functools
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxlm.core.errors import ConfigError, unknown
from jaxlm.tokenize.base import as_bytes
from jaxlm.tokenize.digits import group_digits

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
RULES = ("space", "lines", "whitespace", "gpt2", "digits", "digits_l2r_N", "digits_r2l_N", "regex:PATTERN")
_GROUPS = re.compile("digits_(l2r|r2l)_([1-9][0-9]*)")
_WHITESPACE = re.compile(rb"[ \t\n\r\f\v]+|[^ \t\n\r\f\v]+")
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")

Rule = Callable[[bytes], list[bytes]]


def split(data: bytes, rules: Sequence[str]) -> list[bytes]:
    """The pieces of ``data``, none of them empty. Raises `ConfigError` for a rule that there is not."""
    pieces = [data] if data else []
    for rule in map(rule_of, rules):
        pieces = [part for piece in pieces for part in rule(piece)]
    return pieces


def word_counts(texts: Iterable[str | bytes], rules: Sequence[str]) -> dict[bytes, int]:
    """How often each piece of the texts occurs, in the order of first occurrence."""
    counts: collections.Counter[bytes] = collections.Counter()
    for text in texts:
        counts.update(split(as_bytes(text), rules))
    return dict(counts)


def words_of(texts: Iterable[str | bytes], rules: Sequence[str]) -> dict[tuple[int, ...], int]:
    """`word_counts` with pieces as the ids of their bytes, as `jaxlm.tokenize.merges.learn` takes them."""
    return {tuple(piece): count for piece, count in word_counts(texts, rules).items()}


@functools.cache
def rule_of(name: str) -> Rule:
    """The function of a rule: bytes (not empty) to pieces. Raises `ConfigError` if there is none of that name."""
    if name == "space":
        return _space
    if name == "lines":
        return _LINES.findall
    if name == "whitespace":
        return _WHITESPACE.findall
    if name == "gpt2":
        return functools.partial(_matches, _compiled(GPT2))
    if name == "digits":
        return functools.partial(_digits, 1, "l2r")
    if groups := _GROUPS.fullmatch(name):
        return functools.partial(_digits, int(groups[2]), groups[1])
    if name.startswith("regex:"):
        return functools.partial(_matches, _compiled(name.removeprefix("regex:")))
    raise unknown("splitting rule", name, RULES)


def _space(piece: bytes) -> list[bytes]:
    first, *others = piece.split(b" ")
    return [first, *[b" " + other for other in others]] if first else [b" " + other for other in others]


def _digits(size: int, direction: str, piece: bytes) -> list[bytes]:
    return _encoded(group_digits(piece.decode("utf-8", "surrogateescape"), size, direction))


def _matches(pattern: Any, piece: bytes) -> list[bytes]:
    text = piece.decode("utf-8", "surrogateescape")
    parts, end = [], 0
    for found in pattern.finditer(text):
        start, stop = found.span()
        if start > end:
            parts.append(text[end:start])
        if stop > start:
            parts.append(text[start:stop])
        end = stop
    if end < len(text):
        parts.append(text[end:])
    return _encoded(parts)


def _encoded(parts: list[str]) -> list[bytes]:
    return [part.encode("utf-8", "surrogateescape") for part in parts]


def _compiled(pattern: str) -> Any:
    try:
        regex = importlib.import_module("regex")
    except ImportError:
        raise ConfigError("splitting by an expression needs regex: pip install 'jaxlm[tokenize]'") from None
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ConfigError(f"splitting rule {'regex:' + pattern!r}: {error}") from None
