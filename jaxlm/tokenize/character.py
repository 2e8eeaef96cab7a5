"""Characters as tokens, the rarest spelt in bytes (Al-Rfou et al. 2019 have characters, ByT5 the bytes).

A character of ASCII is its byte, ids 0-255; the characters of more bytes that were frequent in the texts are ids from
256 on, the most frequent first; any other is as many byte tokens as it has bytes in UTF-8. Lossless, and every byte
string has exactly one encoding. 0.5 MB of ASCII is encoded in less than a millisecond.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.tokenize.base import BYTES, as_bytes
from jaxlm.tokenize.pieces import SPECIALS, PieceTokenizer, characters_of, enough, room_for_pieces
from jaxlm.tokenize.trie import Trie


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer(PieceTokenizer):
    """Characters, with the bytes for those that are not in ``pieces`` (each a character of two bytes or more)."""

    name: ClassVar[str] = "character"
    paper: ClassVar[str] = "Al-Rfou et al. 2019, Character-Level Language Modeling with Deeper Self-Attention"

    def check(self) -> None:
        super().check()
        for piece in self.pieces:
            require(len(piece) == 1, f"CharacterTokenizer.pieces: {piece!r} is {len(piece)} characters, not one")

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes] = (),
        vocab_size: int | None = None,
        *,
        specials: tuple[str, ...] = SPECIALS,
    ) -> Self:
        """The most frequent characters of the texts; without a ``vocab_size`` all of them.

        Raises `ConfigError` if the texts have too few characters for ``vocab_size``.
        """
        counts: collections.Counter[bytes] = collections.Counter(map(as_bytes, texts))
        characters = list(characters_of(counts))
        if vocab_size is not None:
            room = room_for_pieces(cls.name, vocab_size, len(specials))
            enough(cls.name, len(characters), room, len(specials))
            characters = characters[:room]
        return cls(tuple(characters), specials)

    @functools.cached_property
    def _trie(self) -> Trie:
        return Trie((as_bytes(piece), BYTES + i) for i, piece in enumerate(self.pieces))

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        if data.isascii():
            return np.frombuffer(data, np.uint8).astype(np.int32)
        return np.array(self._trie.greedy(data), np.int32)
