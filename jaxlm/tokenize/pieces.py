"""What tokenizers made of a list of pieces share: the 256 bytes, then the pieces, then the special tokens.

Byte b is id b, piece i is id 256 + i and the special tokens follow, as in `jaxlm.tokenize.byte`; so whatever the pieces
do not cover is spelt in bytes and every text has an encoding. Pieces are written as text, bytes that are not UTF-8 as
U+DC80..U+DCFF (PEP 383), which JSON carries.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.tokenize.base import BOS, BYTES, EOS, PAD, Tokenizer, as_bytes, as_text, check_specials

SPECIALS = (BOS, EOS, PAD)


@dataclasses.dataclass(frozen=True)
class PieceTokenizer(Tokenizer):
    """Base of tokenizers with a list of pieces.

    Attributes:
      pieces: byte strings of two or more bytes, in id order from 256 on, all different.
      specials: special tokens, in id order after the pieces.
    """

    pieces: tuple[str, ...] = ()
    specials: tuple[str, ...] = SPECIALS

    def check(self) -> None:
        kind = type(self).__name__
        check_pieces(f"{kind}.pieces", self.pieces)
        check_specials(f"{kind}.specials", self.specials)

    @property
    def _strings(self) -> tuple[str, ...]:
        """What the ids from 256 to the special tokens stand for."""
        return self.pieces

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        single = [bytes([b]) for b in range(BYTES)]
        return (*single, *map(as_bytes, self._strings), *(b"" for _ in self.specials))

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        return {name: BYTES + len(self._strings) + i for i, name in enumerate(self.specials)}


def check_pieces(where: str, pieces: tuple[str, ...]) -> None:
    """Raises `ConfigError` unless all are different, valid, and of two bytes or more (a byte has its id already)."""
    seen: set[str] = set()
    for piece in pieces:
        if piece in seen:
            raise ConfigError(f"{where}: repeated: {shown(piece)}")
        if len(as_bytes(piece)) < 2:
            raise ConfigError(f"{where}: {shown(piece)} has fewer than two bytes; every byte is an id itself")
        seen.add(piece)


def room_for_pieces(name: str, vocab_size: int | None, specials: int = len(SPECIALS)) -> int:
    """How many pieces fit beside the bytes and the special tokens. Raises `ConfigError` if not one does."""
    require(vocab_size is not None, f"training a {name!r} tokenizer needs a vocab_size")
    assert vocab_size is not None
    least = BYTES + specials + 1
    require(
        vocab_size >= least,
        f"vocab_size of a {name!r} tokenizer must be at least {least} (256 bytes, {specials} specials, one piece), "
        f"got {vocab_size}",
    )
    return vocab_size - BYTES - specials


def enough(name: str, found: int, wanted: int, specials: int = len(SPECIALS)) -> None:
    """Raises `ConfigError` if training found fewer pieces than were wanted."""
    require(
        found >= wanted,
        f"the texts have too little for a {name!r} tokenizer of {wanted + BYTES + specials} ids: "
        f"vocab_size can be at most {found + BYTES + specials}",
    )


def characters_of(words: Mapping[bytes, int]) -> dict[str, int]:
    """Characters of more than one byte with their counts, the most frequent first, ties by code point."""
    counts: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        if not word.isascii():
            for character in _characters(word):
                counts[character] += count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _characters(word: bytes) -> list[str]:
    return [c for c in as_text(word) if c > "\x7f" and not "\udc80" <= c <= "\udcff"]


def covered(words: Mapping[bytes, int], coverage: float) -> tuple[dict[str, int], list[str]]:
    """Words over the characters worth knowing, with their counts, and those characters of more than one byte.

    The rarest characters, of which the text has a share of ``1 - coverage``, are left to the bytes (SentencePiece's
    ``character_coverage``), and so are bytes that are not UTF-8: words are cut at them.
    """
    require(0 < coverage <= 1, f"coverage must be above 0 and at most 1, got {coverage}")
    ascii_count = sum(count * sum(byte < 128 for byte in word) for word, count in words.items())
    counts = characters_of(words)
    left = (1 - coverage) * (ascii_count + sum(counts.values()))
    kept = dict(counts)
    for character, count in reversed(counts.items()):
        left -= count
        if left < 0:
            break
        del kept[character]
    dropped = "".join(re.escape(c) for c in counts if c not in kept)
    boundary = re.compile(f"[\udc80-\udcff{dropped}]+")
    found: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        if word.isascii():
            found[word.decode()] += count
        else:
            for part in boundary.split(as_text(word)):
                if part:
                    found[part] += count
    return dict(found), list(kept)
