"""A dictionary of phrases and the longest match (Rajaraman et al. 2024, Toward a Theory of Tokenization in LLMs).

The dictionary is that of LZW (Welch 1984): starting from the single bytes, repeatedly

    read the shortest phrase that is not in the dictionary yet, add it, and go on from its last byte,

until it is full. A text is encoded greedily, by the longest phrase at every place. The paper shows that the best
*unigram* model over such tokens comes close to the entropy rate of a Markov source, where over characters it cannot;
`jaxlm.data.switching_source` has the source. Nothing is split in front, so phrases run over spaces and lines.
0.5 MB of code, CPU-seconds (results/benchmark/tokenize.txt): 3837 phrases are learned in 0.01 (they are the first of
the text), encoding takes 0.1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.tokenize.base import BYTES, as_bytes, as_text
from jaxlm.tokenize.pieces import SPECIALS, PieceTokenizer, enough, room_for_pieces
from jaxlm.tokenize.trie import Trie


@dataclasses.dataclass(frozen=True)
class DictionaryTokenizer(PieceTokenizer):
    """Phrases, and the longest match from left to right; where no phrase matches, a byte."""

    name: ClassVar[str] = "dictionary"
    paper: ClassVar[str] = "Rajaraman et al. 2024, Toward a Theory of Tokenization in LLMs"

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes] = (),
        vocab_size: int | None = None,
        *,
        specials: tuple[str, ...] = SPECIALS,
    ) -> Self:
        """LZW over the texts, each begun afresh with the dictionary so far; without a ``vocab_size`` until they end.

        Raises `ConfigError` if the texts end before ``vocab_size`` ids are there.
        """
        room = None if vocab_size is None else room_for_pieces(cls.name, vocab_size, len(specials))
        phrases = lempel_ziv(map(as_bytes, texts), room)
        if room is not None:
            enough(cls.name, len(phrases), room, len(specials))
        return cls(tuple(map(as_text, phrases)), specials)

    @functools.cached_property
    def _trie(self) -> Trie:
        return Trie((as_bytes(piece), BYTES + i) for i, piece in enumerate(self.pieces))

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        return np.array(self._trie.greedy(data), np.int32)


def lempel_ziv(texts: Iterable[bytes], most: int | None = None) -> list[bytes]:
    """The phrases of two bytes or more that LZW adds, in order, at most ``most``."""
    node_of: dict[tuple[int, int], int] = {}  # (phrase, byte) -> phrase; below 256 a phrase is a byte
    phrases: list[bytes] = []
    for text in texts:
        node = text[0] if text else 0
        for byte in text[1:]:
            if len(phrases) == most:
                return phrases
            following = node_of.get((node, byte))
            if following is None:
                node_of[node, byte] = BYTES + len(phrases)
                phrases.append((phrases[node - BYTES] if node >= BYTES else bytes([node])) + bytes([byte]))
                node = byte
            else:
                node = following
    return phrases
