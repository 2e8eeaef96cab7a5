"""Trap words: two adjacent words that a tokenizer reads as other ones (Wang et al. 2024, ADT, arXiv 2405.17067).

"movestable" may be moves + table, but a vocabulary with the token "stable" never shows a model that border. A trap is

    two words A and B, each of them a token, whose joined text A B has, when tokenized, a token T that
    begins before the border and ends behind it, and T is itself a word; its score is how frequent that word is

The paper exports a vocabulary, finds such tokens and has sentences written around them. Here the words with counts are
given, and pairs are found from the tokens: each T is cut at every place, and words that end in its head or begin with
its tail are looked up, so that only pairs that could spell T are ever encoded. `controls` are pairs of the same
lengths and nearly the same frequencies whose border every token respects.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxlm.core.config import require
from jaxlm.tokenize.base import Tokenizer, as_bytes, as_text


class Trap(NamedTuple):
    """Two words whose border a token straddles."""

    first: str
    second: str
    text: str  # prefix + first + second
    word: str  # what the straddling token reads as
    token: int
    score: int  # how frequent that word is
    span: tuple[int, int]  # bytes of the text that are the token


class Control(NamedTuple):
    """Two words whose border is one between tokens."""

    first: str
    second: str
    text: str


def search(
    tokenizer: Tokenizer,
    words: Mapping[str, int],
    limit: int | None = 100,
    *,
    per_token: int | None = 4,
    tries: int | None = 500,
    prefix: str = " ",
) -> list[Trap]:
    """Traps in the order of their score; of equal score and token, pairs whose rarer word is frequent come first.

    Args:
      tokenizer: whose vocabulary is searched; its tokens must have bytes.
      words: how frequent each word is; those that are not a token, with or without the prefix, are not used for A, B.
      limit: how many traps; None for all.
      per_token: how many with the same straddling token; None for all.
      tries: how many pairs are encoded for one straddling token before it is given up; None for all.
      prefix: stands before the pair. The token may include it, if A lies wholly within the token.

    Raises:
      ConfigError: bad counts or limits, no words, or a vocabulary in which none of them is a token.
    """
    for name, value in (("limit", limit), ("per_token", per_token), ("tries", tries)):
        require(value is None or value > 0, f"search: {name} must be positive or None, got {value}")
    parts = _parts(tokenizer, words, prefix)
    lead = as_bytes(prefix)
    by_head, by_tail = _Index(parts), _Index({word[::-1]: count for word, count in parts.items()})
    texts = {as_bytes(word): word for word in words}
    found: list[Trap] = []
    for score, piece, begins in _straddlers(tokenizer, words, lead):
        kept = tried = 0
        for first, second in _candidates(piece, begins, parts, by_tail, by_head):
            if tries is not None and tried >= tries:
                break
            tried += 1
            straddled = _straddled(tokenizer, lead, first, second)
            if straddled is None:
                continue
            token, (start, stop), data = straddled
            if data[start:stop] == (lead + piece if begins else piece):
                pair = texts[first], texts[second]
                found.append(Trap(*pair, prefix + "".join(pair), texts[piece], token, score, (start, stop)))
                kept += 1
                if limit is not None and len(found) >= limit:
                    return found
                if per_token is not None and kept >= per_token:
                    break
    return found


def controls(
    tokenizer: Tokenizer,
    traps: Sequence[Trap],
    words: Mapping[str, int],
    *,
    nearest: int = 30,
    prefix: str = " ",
) -> list[tuple[Trap, Control]]:
    """For each trap a pair of words of the same bytes and similar counts, cut at its border; none is used twice.

    Args:
      tokenizer: that of the traps.
      traps: from `search`, with the same words and prefix.
      words: how frequent each word is.
      nearest: words of the right length, on each side, that are considered; by the ratio of their counts to the trap's.
      prefix: as in `search`.

    Returns:
      (trap, control), without the traps for which there is none.
    """
    parts = _parts(tokenizer, words, prefix)
    by_length: dict[int, list[tuple[float, bytes]]] = collections.defaultdict(list)
    for word, count in parts.items():
        by_length[len(word)].append((math.log(count), word))
    for group in by_length.values():
        group.sort()
    used = {(as_bytes(trap.first), as_bytes(trap.second)) for trap in traps}
    paired = []
    for trap in traps:
        near = [_near(by_length[len(as_bytes(w))], math.log(words[w]), nearest) for w in (trap.first, trap.second)]
        pairs = sorted(itertools.product(*near), key=lambda pair: (pair[0][0] + pair[1][0], pair))
        for (_, first), (_, second) in pairs:
            if (first, second) not in used and _respected(tokenizer, as_bytes(prefix), first, second):
                used.add((first, second))
                a, b = as_text(first), as_text(second)
                paired.append((trap, Control(a, b, prefix + a + b)))
                break
    return paired


def _parts(tokenizer: Tokenizer, words: Mapping[str, int], prefix: str) -> dict[bytes, int]:
    """The words that are a token by themselves or behind the prefix, with their counts."""
    for word, count in words.items():
        require(word and count > 0, f"words: expected words with positive counts, got {word!r}: {count}")
    vocabulary = frozenset(tokenizer.token_bytes)
    lead = as_bytes(prefix)
    parts = {data: n for word, n in words.items() if {data := as_bytes(word), lead + data} & vocabulary}
    require(parts, f"words: none of the {len(words)} is a token of {tokenizer.name!r}")
    return parts


def _straddlers(tokenizer: Tokenizer, words: Mapping[str, int], lead: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """(score, the word of the token, whether the token begins with the prefix), frequent ones first."""
    counts = {as_bytes(word): count for word, count in words.items()}
    found: set[tuple[bytes, bool]] = set()
    for piece in tokenizer.token_bytes:
        found.add((piece, False))
        if lead and piece.startswith(lead):
            found.add((piece[len(lead) :], True))
    chosen = [(counts[piece], piece, begins) for piece, begins in found if len(piece) > 1 and piece in counts]
    yield from sorted(chosen, key=lambda item: (-item[0], item[1], item[2]))


class _Index:
    """Words by what they begin with."""

    def __init__(self, words: Mapping[bytes, int]):
        self._words = sorted(words)
        self._counts = words

    def __getitem__(self, head: bytes) -> Iterator[tuple[int, bytes]]:
        """(count, word) of every word that begins with ``head``."""
        for at in range(bisect.bisect_left(self._words, head), len(self._words)):
            if not self._words[at].startswith(head):
                return
            yield self._counts[self._words[at]], self._words[at]


def _candidates(
    piece: bytes, begins: bool, parts: Mapping[bytes, int], by_tail: _Index, by_head: _Index
) -> list[tuple[bytes, bytes]]:
    """Pairs of words whose joined bytes have ``piece`` across the border; those whose rarer word is frequent first."""
    found = []
    for cut in range(1, len(piece)):
        head, tail = piece[:cut], piece[cut:]
        seconds = list(by_head[tail])
        if not seconds:
            continue
        firsts = [(n, word[::-1]) for n, word in by_tail[head[::-1]] if not begins or len(word) == len(head)]
        found += [(-min(n, m), -max(n, m), first, second) for n, first in firsts for m, second in seconds]
    return [(first, second) for _, _, first, second in sorted(found)]


def _straddled(
    tokenizer: Tokenizer, lead: bytes, first: bytes, second: bytes
) -> tuple[int, tuple[int, int], bytes] | None:
    """The token across the border of the joined words, its bytes' place, and those words; None if there is none."""
    data, border = lead + first + second, len(lead) + len(first)
    ids = tokenizer.encode(data)
    if tokenizer.decode_bytes(ids) != data:
        return None  # normalised, so that places in the data are not places in the tokens
    for token, (start, stop) in zip(ids.tolist(), tokenizer.spans(ids).tolist(), strict=True):
        if start < border < stop:
            return token, (start, stop), data
    return None


def _respected(tokenizer: Tokenizer, lead: bytes, first: bytes, second: bytes) -> bool:
    """Whether the joined words are tokenized as the two are alone."""
    alone = [*tokenizer.encode(lead + first).tolist(), *tokenizer.encode(second).tolist()]
    return tokenizer.encode(lead + first + second).tolist() == alone


def _near(group: Sequence[tuple[float, bytes]], log: float, count: int) -> list[tuple[float, bytes]]:
    """(difference, word) of the ``count`` words whose log count is nearest."""
    at = bisect.bisect_left(group, (log, b""))
    around = group[max(0, at - count) : at + count]
    return sorted((abs(value - log), word) for value, word in around)[:count]
