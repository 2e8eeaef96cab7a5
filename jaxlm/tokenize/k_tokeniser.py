"""K-Tokeniser: a vocabulary for each semantic type (drugs, diseases, ...), and the sentence decides which one cuts it.

Paper: Hasan et al. 2024, Infusing clinical knowledge into tokenisers for language models. The base tokenizer stays;
each type adds subwords, learned from its terms (an ontology's, or the training corpus') by byte pair encoding. A word
then has a segmentation for the base alone and one for each type: the type's subwords by longest match, the base for the
rest. Of these is taken, with ties to the base and then the order of types,

    "fertility"    for a whole sentence, that of the type with the fewest tokens in it (the paper's sequence level)
    "entropy"      for each word, that of the least information -sum log2 p(token) (the paper's word level)

p is the share of a token among all segmentations of the training texts. How exactly the paper measures entropy is not
known to us; information in bits is our reading. New tokens of a model start as the average of their old pieces
(`jaxlm.interop.embedding_init.k_tokeniser`). Claimed: +13 % micro-F1 in clinical coding, without pre-training.

Ids: those of the base, then the new subwords; one of several types has one id. What stands between is the base's, so a
text has an encoding if it has one there.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import make, require, slot
from jaxlm.core.errors import choose
from jaxlm.tokenize.base import Tokenizer, as_bytes, as_text
from jaxlm.tokenize.merges import bytes_of, learn
from jaxlm.tokenize.pieces import check_pieces
from jaxlm.tokenize.trie import Trie

CHOICES = ("fertility", "entropy")
_WORD = re.compile(rb"\s*[^\s]+|\s+")
_SENTENCE = re.compile(rb"(?:[^.!?\n]|[.!?](?!\s))*(?:[.!?](?=\s)|\n|\Z)", re.S)


@dataclasses.dataclass(frozen=True)
class KTokeniser(Tokenizer):
    """A base tokenizer with typed vocabularies.

    Attributes:
      base: the tokenizer of the model that is adapted, of those that know their tokens' bytes.
      types: names of the semantic types.
      pieces: of each type its subwords, of two bytes or more; bytes that are not UTF-8 as U+DC80..U+DCFF.
      choice: `CHOICES`.
      information: -log2 of each id's share, for ``"entropy"``; empty for all alike (then fewest tokens win).
    """

    name: ClassVar[str] = "k_tokeniser"
    paper: ClassVar[str] = "Hasan et al. 2024, Infusing clinical knowledge into tokenisers for language models"

    base: Any = slot("tokenizer", "byte")
    types: tuple[str, ...] = ()
    pieces: tuple[tuple[str, ...], ...] = ()
    choice: str = "fertility"
    information: tuple[float, ...] = ()

    def check(self) -> None:
        choose("KTokeniser.choice", self.choice, CHOICES)
        require(len(set(self.types)) == len(self.types), f"KTokeniser.types: repeated in {self.types}")
        require(
            len(self.pieces) == len(self.types),
            f"KTokeniser.pieces: {len(self.pieces)} vocabularies for {len(self.types)} types",
        )
        for name, pieces in zip(self.types, self.pieces, strict=True):
            check_pieces(f"KTokeniser.pieces of {name!r}", pieces)
        if self.types:
            around = self.base.decode_bytes(self.base.encode(b"a"))
            exact = len(b"".join(self.base.token_bytes[i] for i in self.base.encode(b"a"))) == len(around) == 1
            require(
                exact,
                f"KTokeniser.base: a {self.base.name!r} tokenizer that puts a space before texts cannot spell parts",
            )
        require(
            len(self.information) in (0, self.vocab_size),
            f"KTokeniser.information: expected {self.vocab_size} numbers or none, got {len(self.information)}",
        )
        require(
            all(math.isfinite(bits) and bits >= 0 for bits in self.information),
            "KTokeniser.information: expected finite numbers >= 0",
        )

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes] = (),
        vocab_size: int | None = None,
        *,
        base: Any = "byte",
        terms: Mapping[str, Iterable[str | bytes]] | None = None,
        choice: str = "fertility",
    ) -> Self:
        """Subwords of the terms of each type, as many of each, and the information of tokens in the texts.

        Args:
          vocab_size: with the base's ids; what the types' subwords share is left unused.
          base: a tokenizer of the slot.
          terms: words or phrases by type; by default the words of the texts, of one type ``"text"``.

        Raises `ConfigError` if the base fills the vocabulary, or terms have no pair of bytes left to join.
        """
        texts, base = list(texts), make("tokenizer", base, where="base")
        if terms is None:
            terms = {"text": [word for text in texts for word in _WORD.findall(as_bytes(text))]}
        least = base.vocab_size + len(terms)
        require(
            vocab_size is not None and vocab_size >= least,
            f"vocab_size of a 'k_tokeniser' must be at least {least} (the base's {base.vocab_size} ids and a subword "
            f"of each type), got {vocab_size}",
        )
        assert vocab_size is not None
        known = set(base.token_bytes)
        pieces = []
        for name, found in terms.items():
            counts = collections.Counter(tuple(as_bytes(term)) for term in found)
            own: dict[bytes, None] = {}
            spelt = bytes_of(())
            for step in learn(counts, vocab_size):
                spelt.append(spelt[step.left] + spelt[step.right])
                if spelt[-1] not in known:
                    own[spelt[-1]] = None
                if len(own) == (vocab_size - base.vocab_size) // len(terms):
                    break
            require(own, f"the terms of type {name!r} have no subword that the base tokenizer lacks")
            pieces.append(tuple(map(as_text, own)))
        plain = cls(base, tuple(terms), tuple(pieces), choice)
        counts = collections.Counter(
            i for text in texts for word in _WORD.findall(as_bytes(text)) for ids in plain.candidates(word) for i in ids
        )
        total = sum(counts.values()) + plain.vocab_size  # one more of each
        bits = tuple(math.log2(total / (counts[i] + 1)) for i in range(plain.vocab_size))
        return dataclasses.replace(plain, information=bits)

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        return (*self.base.token_bytes, *self._new)

    @property
    def special_ids(self) -> dict[str, int]:
        return self.base.special_ids

    @property
    def adds_bos(self) -> bool:
        return self.base.adds_bos

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.base.stop_ids

    def candidates(self, word: bytes) -> list[list[int]]:
        """The segmentations of a word: the base's, then each type's."""
        return [self.base.encode(word).tolist(), *(self._typed(trie, word) for trie in self._tries)]

    def chosen_types(self, text: str | bytes) -> list[tuple[bytes, str]]:
        """Each word (with the white space before it) and the type that cut it, ``""`` for the base."""
        names = ["", *self.types]
        return [(word, names[kind]) for word, kind, _ in self._cut(as_bytes(text))]

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        if not self.types:
            return self.base.encode(data)
        return np.array([i for _, _, ids in self._cut(data) for i in ids], np.int32)

    def _cut(self, data: bytes) -> list[tuple[bytes, int, list[int]]]:
        """Words, the number of the vocabulary that cut each, and their ids."""
        out = []
        for sentence in _SENTENCE.findall(data):
            words = _WORD.findall(sentence)
            found = [self.candidates(word) for word in words]
            if self.choice == "fertility":
                sizes = [sum(len(ids) for ids in column) for column in zip(*found, strict=True)]
                kinds = [sizes.index(min(sizes))] * len(words) if sizes else []
            else:
                costs = [[self._cost(ids) for ids in each] for each in found]
                kinds = [cost.index(min(cost)) for cost in costs]
            out += [(word, kind, each[kind]) for word, kind, each in zip(words, kinds, found, strict=True)]
        return out

    def _cost(self, ids: list[int]) -> float:
        return sum(self.information[i] for i in ids) if self.information else float(len(ids))

    def _typed(self, trie: Trie, word: bytes) -> list[int]:
        """Subwords of the type by the longest match, the base for what lies between them."""
        ids: list[int] = []
        at, plain = 0, 0
        while at < len(word):
            found, end = trie.longest(word, at)
            if found >= 0:
                ids += [*self.base.encode(word[plain:at]).tolist(), found]
                at = plain = end
            else:
                at += 1
        return ids + self.base.encode(word[plain:]).tolist()

    @functools.cached_property
    def _new(self) -> tuple[bytes, ...]:
        known = set(self.base.token_bytes)
        each = dict.fromkeys(as_bytes(piece) for pieces in self.pieces for piece in pieces)
        return tuple(piece for piece in each if piece not in known)

    @functools.cached_property
    def _tries(self) -> list[Trie]:
        ids = {piece: i for i, piece in reversed(list(enumerate(self.token_bytes))) if piece}
        return [Trie((piece, ids[piece]) for piece in map(as_bytes, pieces)) for pieces in self.pieces]
