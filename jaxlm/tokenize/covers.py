r"""Covers: the token sequences that a text may have begun with (Phan et al. 2024, Exact Byte-Level Probabilities from
Tokenized Language Models for FIM-Tasks and Model Ensembles).

A cover of a byte string x is a sequence t_1 .. t_k whose bytes begin with x while those of t_1 .. t_{k-1} are shorter
than x: its last token is the first to reach the end. It is valid if it is the encoding of its own bytes. A text that
begins with x is encoded beginning with exactly one cover, hence the Byte-Token Representation Lemma,

    P(x) = sum over covers t of x of P(t)          P(b | x) = P(x b) / P(x)

They are found by their last token: one that begins with x[i:], for a cut i, makes a cover if x[:i] with its bytes is
encoded with it at the end. So encodings alone decide, whatever the tokenizer does; there are at most as many candidates
as tokens that begin with an end of x, and no end is longer than the longest token.

Bytes that end inside a character are encoded as `Tokenizer.encode` has it. Tokens of parts of characters are valid if
it makes them, as byte-level BPE without expressions does; tokenizers that take whole characters apart first may not.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import Tokenizer, as_bytes

Cover = tuple[int, ...]
MOST = 1_000_000  # sequences that `all_covers` gives before it refuses


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Tokens sorted by their bytes, so that those that begin with a string are a range.

    Attributes:
      ids: int64 [n]. texts: their bytes, in order; two tokens may spell the same ones, and both count.
    """

    ids: NDArray[np.int64]
    texts: tuple[bytes, ...]

    @classmethod
    def of(cls, texts: Sequence[bytes], ids: Iterable[int]) -> Pieces:
        """The tokens of ``ids`` that have bytes; special ones have none."""
        found = sorted((texts[i], i) for i in ids if texts[i])
        return cls(np.array([i for _, i in found], np.int64), tuple(text for text, _ in found))

    def starting_with(self, prefix: bytes) -> NDArray[np.int64]:
        """The ids of tokens that begin with (or are) ``prefix``."""
        return self.ids[self.where(prefix)]

    @functools.cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.texts), default=0)

    def where(self, prefix: bytes) -> slice:
        """The places of tokens that begin with (or are) ``prefix``."""
        start = bisect.bisect_left(self.texts, prefix)
        after = prefix.rstrip(b"\xff")  # the first string behind all that begin with it
        stop = bisect.bisect_left(self.texts, after[:-1] + bytes([after[-1] + 1])) if after else len(self.texts)
        return slice(start, stop)


def usable_pieces(tokenizer: Tokenizer, usable_ids: Iterable[int] | None = None) -> Pieces:
    """The tokens that stand for bytes. Raises `ConfigError` for a tokenizer whose tokens do not, or an id it lacks."""
    table = tokenizer.token_bytes
    ids = range(len(table)) if usable_ids is None else sorted({int(i) for i in usable_ids})
    wrong = [i for i in ids if not 0 <= i < len(table)]
    require(not wrong, f"usable_ids: {wrong[:1]} is outside the {tokenizer.name!r} tokenizer's 0..{len(table) - 1}")
    pieces = Pieces.of(table, ids)
    require(len(pieces.ids), f"usable_ids: no token of the {tokenizer.name!r} tokenizer that stands for bytes")
    return pieces


def is_canonical(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Whether ids are the encoding of their own bytes."""
    return encoded(tokenizer, tokenizer.decode_bytes(np.array(ids, np.int64))) == tuple(map(int, ids))


def encoded(tokenizer: Tokenizer, data: bytes) -> Cover | None:
    """The encoding of bytes; None if the tokenizer takes only UTF-8 and these are not."""
    try:
        return tuple(tokenizer.encode(data).tolist())
    except ConfigError:
        return None


def covers(
    tokenizer: Tokenizer, prefix: str | bytes, usable_ids: Iterable[int] | None = None, valid: bool = True
) -> list[Cover]:
    """The covers of ``prefix``, sorted. The empty one has none: nothing has been said, with probability 1.

    Args:
      tokenizer: any whose tokens stand for bytes.
      usable_ids: the tokens that covers may have; None for all.
      valid: only encodings; False for every sequence of tokens, of which there are exponentially many (`all_covers`).

    Raises `ConfigError` if tokens do not stand for bytes, or for too many covers.
    """
    text, pieces = as_bytes(prefix), usable_pieces(tokenizer, usable_ids)
    if not valid:
        return sorted(all_covers(text, pieces))
    allowed = set(pieces.ids.tolist())
    found = {cover for cover in _candidates(tokenizer, text, pieces) if allowed.issuperset(cover)}
    return sorted(found)


def _candidates(tokenizer: Tokenizer, text: bytes, pieces: Pieces) -> Iterator[Cover]:
    for cut in range(max(0, len(text) - pieces.longest - 1), len(text)):
        for vocabulary in (pieces, as_first(tokenizer, pieces)) if cut == 0 else (pieces,):
            among = vocabulary.where(text[cut:])
            for token, piece in zip(vocabulary.ids[among].tolist(), vocabulary.texts[among], strict=True):
                whole = text[:cut] + piece
                cover = encoded(tokenizer, whole)
                if cover and cover[-1] == token and tokenizer.decode_bytes(np.array(cover)) == whole:
                    yield cover


def as_first(tokenizer: Tokenizer, pieces: Pieces) -> Pieces:
    """The same tokens as they read at the beginning of a text, where some tokenizers take a space away."""
    texts = {i: tokenizer.decode_bytes(np.array([i])) for i in pieces.ids.tolist()}
    found = sorted((text, i) for i, text in texts.items() if text)
    return Pieces(np.array([i for _, i in found], np.int64), tuple(text for text, _ in found))


def all_covers(text: bytes, pieces: Pieces, most: int = MOST) -> Iterator[Cover]:
    """Every cover, valid or not, by depth-first search. Raises `ConfigError` for more than ``most``."""
    places = {piece: [] for piece in pieces.texts}
    for i, piece in zip(pieces.ids.tolist(), pieces.texts, strict=True):
        places[piece].append(i)
    count, open_ends = 0, [(0, ())] if text else []
    while open_ends:
        at, cover = open_ends.pop()
        for token in pieces.starting_with(text[at:]).tolist():
            count += 1
            require(count <= most, f"prefix {text[:20]!r} of {len(text)} bytes has more than {most} covers")
            yield (*cover, token)
        for stop in range(at + 1, min(len(text), at + pieces.longest + 1)):
            open_ends += [(stop, (*cover, token)) for token in places.get(text[at:stop], ())]
