"""Byte pair encoding on bytes (Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units; on
bytes, Radford et al. 2019, GPT-2).

    train     pieces of the texts with their counts; the most frequent adjacent pair becomes a token, again and again;
              ties go to the smallest (left id, right id), overlapping positions count, merges go left to right
    encode    in each piece, the pair of lowest rank that is there is merged, all its occurrences from left to right,
              until none is left. Never by looking a piece up in the vocabulary, nor by the longest match

Ids: bytes 0-255, merge i is 256 + i, special tokens behind (those of a vocabulary that was extended stay where they
were, see `jaxlm.tokenize.extend`). The merges that `train` learns are those of the library
tokenizers (Moi and Patry 2023) when its bytes have these ids, except where two merges spell the same bytes, which here
are two tokens of which only one is ever made (`unreachable`). Without splitting rules, dropping the last tokens of an
encoding leaves the encoding of the shorter text; rules that look ahead (``gpt2``) break that at the ends of pieces.

0.5 MB of code, CPU-seconds (results/benchmark/tokenize.txt): 4096 merges are learned in 0.7 split at spaces, and in 0.2
to 0.4 by ``gpt2``, about twice what tokenizers takes; encoding takes 0.2 to 0.3, as tokenizers, four times what
tiktoken takes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.tokenize import merges as lists
from jaxlm.tokenize.base import BOS, BYTES, EOS, PAD, Tokenizer, check_specials
from jaxlm.tokenize.merges import Pair, Step, learn
from jaxlm.tokenize.pretokens import rule_of, split, words_of

__all__ = ["BpeTokenizer", "Step", "learn"]


@dataclasses.dataclass(frozen=True)
class BpeTokenizer(Tokenizer):
    """Byte pair encoding from a list of merges.

    Attributes:
      merges: pairs of symbols; merge i makes symbol 256 + i out of two smaller ones. Symbols are ids, but for those of
        merges behind special tokens (`symbol_ids`).
      split: rules of `jaxlm.tokenize.pretokens`, one applied after another; ``()`` for none.
      specials: special tokens in id order, behind the merges.
      specials_after: behind how many of the merges the special tokens' ids come; -1 for all of them.
    """

    name: ClassVar[str] = "bpe"
    paper: ClassVar[str] = "Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units"

    merges: tuple[tuple[int, int], ...] = ()
    split: tuple[str, ...] = ("space",)
    specials: tuple[str, ...] = (BOS, EOS, PAD)
    specials_after: int = -1

    def check(self) -> None:
        lists.check(self.merges, "BpeTokenizer.merges")
        for rule in self.split:
            rule_of(rule)
        check_specials("BpeTokenizer.specials", self.specials)
        require(
            -1 <= self.specials_after <= len(self.merges),
            f"BpeTokenizer.specials_after: {self.specials_after}, but there are {len(self.merges)} merges",
        )

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes] = (),
        vocab_size: int | None = None,
        *,
        split: tuple[str, ...] = ("space",),
        specials: tuple[str, ...] = (BOS, EOS, PAD),
    ) -> Self:
        """Learns ``vocab_size - 256 - len(specials)`` merges.

        Raises `ConfigError` if that is negative or no size is given, and if the texts have no pair left before.
        """
        steps = lists.number_of_merges(vocab_size, specials)
        learned = [(step.left, step.right) for step in learn(words_of(texts, split), steps)]
        lists.require_all(len(learned), steps, specials)
        return cls(tuple(learned), split, specials)

    @functools.cached_property
    def ranks(self) -> dict[Pair, int]:
        """pair of symbols -> number of its merge."""
        return lists.ranks_of(self.merges)

    @functools.cached_property
    def symbol_ids(self) -> NDArray[np.int32]:
        """The ids of the bytes and the merges, in order, int32 [256 + len(merges)]; all but the special tokens."""
        ids = np.arange(BYTES + len(self.merges), dtype=np.int32)
        ids[self._first_special :] += len(self.specials)
        return ids

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        table, at = lists.bytes_of(self.merges), self._first_special
        return (*table[:at], *(b"" for _ in self.specials), *table[at:])

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        return {name: self._first_special + i for i, name in enumerate(self.specials)}

    @property
    def _first_special(self) -> int:
        return BYTES + (len(self.merges) if self.specials_after < 0 else self.specials_after)

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        symbols = np.array(lists.apply_to_pieces(data, self.split, self.ranks, self._cache), np.int32)
        return symbols if self.specials_after < 0 else self.symbol_ids[symbols]

    @functools.cached_property
    def _cache(self) -> dict[bytes, list[int]]:
        return {}


@dataclasses.dataclass(frozen=True)
class Unreachable:
    """A token that no text gives.

    Attributes:
      id, piece: the token and its bytes.
      instead: the ids that its bytes are encoded as; another single id if a second merge spells the same bytes.
      reason: ``"same bytes"``, ``"other merges"`` (that come first), or ``"split"`` (the rules cut its bytes).
    """

    id: int
    piece: bytes
    instead: tuple[int, ...]
    reason: str


def unreachable(tokenizer: BpeTokenizer) -> list[Unreachable]:
    """The tokens of merges that never come out of encoding, in the order of ids. They do no harm but to the vocabulary.

    The tokens inside a token are merged as if its bytes stood alone, so a token is made by some text if and only if its
    own bytes give it. The rules are asked about those bytes alone; one that looks around may cut them in every text, or
    in none, and then ``"split"`` is a guess.
    """
    found = []
    for i in tokenizer.symbol_ids[BYTES:].tolist():
        piece = tokenizer.token_bytes[i]
        alone = tuple(tokenizer.symbol_ids[lists.apply(piece, tokenizer.ranks)].tolist())
        if alone != (i,):
            found.append(Unreachable(i, piece, alone, "same bytes" if len(alone) == 1 else "other merges"))
        elif len(split(piece, tokenizer.split)) > 1:
            found.append(Unreachable(i, piece, tuple(tokenizer.encode(piece).tolist()), "split"))
    return found
