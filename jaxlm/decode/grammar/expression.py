"""Syntax trees of regular expressions and of the right-hand sides of grammars, and characters as bytes of UTF-8.

A set of characters becomes alternatives of byte sequences (Thompson's UTF-8 automata, as in RE2): a range of code
points is cut where the length of the encoding changes and then until each byte runs over an interval of its own. So a
language of texts is a language of bytes, and a character may be cut by tokens anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jaxlm.tokenize.base import as_bytes

Range = tuple[int, int]  # first and last, both inside
LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # no characters, and no UTF-8
_LONGEST = (0x7F, 0x7FF, 0xFFFF, LAST)  # the last code points of 1, 2, 3 and 4 bytes


@dataclasses.dataclass(frozen=True)
class Name:
    """A nonterminal."""

    name: str


@dataclasses.dataclass(frozen=True)
class Bytes:
    """One byte out of a set."""

    allowed: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Join:
    """One part after the other; of no parts, the empty string."""

    parts: tuple[Expression, ...]


@dataclasses.dataclass(frozen=True)
class Either:
    """One of the options; of none, nothing at all."""

    options: tuple[Expression, ...]


@dataclasses.dataclass(frozen=True)
class Repeat:
    """A part ``least`` to ``most`` times (None: without end)."""

    part: Expression
    least: int
    most: int | None


Expression = Name | Bytes | Join | Either | Repeat


def literal(text: str | bytes) -> Join:
    """Exactly this text."""
    return Join(tuple(Bytes(frozenset([byte])) for byte in as_bytes(text)))


def characters(ranges: Iterable[Range], negated: bool = False) -> Either:
    """One character whose code point is in one of the ranges (or in none of them)."""
    spans = _united(ranges)
    if negated:
        edges = [-1, *(edge for low, high in spans for edge in (low, high)), LAST + 1]
        spans = [(a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return Either(tuple(_sequence(lows, highs) for span in spans for lows, highs in _cut(*span)))


def _sequence(lows: bytes, highs: bytes) -> Join:
    return Join(tuple(Bytes(frozenset(range(a, b + 1))) for a, b in zip(lows, highs, strict=True)))


def _united(ranges: Iterable[Range]) -> list[Range]:
    """The same code points in order, neighbours joined; an empty range is left out."""
    out: list[Range] = []
    for low, high in sorted(span for span in ranges if span[0] <= span[1]):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def _cut(low: int, high: int) -> list[tuple[bytes, bytes]]:
    """Code points low..high as (first bytes, last bytes), each byte running on its own between the two."""
    if low > high:
        return []
    if low <= _SURROGATES[1] and high >= _SURROGATES[0]:
        return _cut(low, _SURROGATES[0] - 1) + _cut(_SURROGATES[1] + 1, high)
    for last in _LONGEST:
        if low <= last < high:
            return _cut(low, last) + _cut(last + 1, high)
    for bits in (6, 12, 18):  # the last 1, 2, 3 bytes run over all their values, or the bytes before them are equal
        if low >> bits == high >> bits or high <= _LONGEST[0]:
            break
        block = (1 << bits) - 1
        if low & block:
            return _cut(low, low | block) + _cut((low | block) + 1, high)
        if high & block != block:
            return _cut(low, (high & ~block) - 1) + _cut(high & ~block, high)
    return [(chr(low).encode(), chr(high).encode())]
