"""WordPiece (Schuster and Nakajima 2012; Wu et al. 2016, GNMT; Devlin et al. 2019, BERT).

A word is cut from left to right, always by the longest piece of the vocabulary. Two forms:

    gnmt    one list of pieces; a mark says where a word begins. Here the mark is the space in front of the word, which
            splitting leaves with it, so nothing is lost and " the" and "the" differ as ``_the`` and ``the`` do.
    bert    two lists: pieces that begin a word, and pieces that continue one (written ``##ing`` in a vocab.txt).

Training starts from characters and joins, step by step, the pair x y of the best score; with counts c of symbols and N
of all of them:

    ratio         c(xy) / (c(x) c(y))                                   the score most descriptions of BERT give
    likelihood    how much the log-likelihood sum_s c(s) log(c(s) / N) of a unigram model rises when all x y are joined
    count         c(xy), as in BPE; what the library tokenizers does

``ratio`` prefers pairs that are never seen apart, however rare, and so needs ``least``; with it few pieces are common
words. Where BERT gives up a word that it cannot spell for ``[UNK]``, the bytes that no piece covers are spelt here.
0.5 MB of code, CPU-seconds (results/benchmark/tokenize.txt): 4096 ids in 0.6 (ratio), 1.5 (count) or 2.4 (likelihood),
encoding 0.1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.tokenize.base import BYTES, as_bytes
from jaxlm.tokenize.pairs import PairCounts
from jaxlm.tokenize.pieces import (
    SPECIALS,
    PieceTokenizer,
    check_pieces,
    covered,
    enough,
    room_for_pieces,
)
from jaxlm.tokenize.pretokens import rule_of, word_counts
from jaxlm.tokenize.pretokens import split as cut
from jaxlm.tokenize.trie import Trie

FORMS = ("gnmt", "bert")
RULES = ("likelihood", "ratio", "count")
_END = 0  # the symbol behind every word, so that every symbol is the left half of a pair


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer(PieceTokenizer):
    """Greedy longest match inside every pre-token.

    Attributes:
      form: one of `FORMS`. ``pieces`` are those that begin a word in ``"bert"``, and may stand anywhere in ``"gnmt"``.
      continuations: ``"bert"`` only, the pieces that go on with a word, without their ``##``; ids after ``pieces``.
      split: rules of `jaxlm.tokenize.pretokens`, which make the words.
    """

    name: ClassVar[str] = "word_piece"
    paper: ClassVar[str] = "Wu et al. 2016, Google's Neural Machine Translation System; Devlin et al. 2019, BERT"

    form: str = "gnmt"
    continuations: tuple[str, ...] = ()
    split: tuple[str, ...] = ("space",)

    def check(self) -> None:
        super().check()
        choose("WordPieceTokenizer.form", self.form, FORMS)
        check_pieces("WordPieceTokenizer.continuations", self.continuations)
        require(
            self.form == "bert" or not self.continuations,
            "WordPieceTokenizer.continuations: only the form 'bert' has them",
        )
        for rule in self.split:
            rule_of(rule)

    @property
    def _strings(self) -> tuple[str, ...]:
        return self.pieces + self.continuations

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes] = (),
        vocab_size: int | None = None,
        *,
        specials: tuple[str, ...] = SPECIALS,
        form: str = "gnmt",
        rule: str = "likelihood",
        split: tuple[str, ...] = ("space",),
        coverage: float = 0.9995,
        least: int = 2,
    ) -> Self:
        """Joins pairs until there are ``vocab_size`` ids; ties go to the larger count, then to the symbols made first.

        Args:
          rule: one of `RULES`.
          coverage: the share of the text whose characters are pieces; the rarest others are spelt in bytes.
          least: pairs that are rarer are not joined.

        Raises `ConfigError` for a ``vocab_size`` that the characters alone fill, or if pairs run out.
        """
        room = room_for_pieces(cls.name, vocab_size, len(specials))
        choose("form of WordPiece", form, FORMS)
        choose("rule of WordPiece", rule, RULES)
        require(least > 0, f"least must be positive, got {least}")
        words, _ = covered(word_counts(texts, split), coverage)
        symbols, sequences = _symbols(words, form == "bert")
        characters = sum(len(as_bytes(text)) > 1 for text, _ in symbols)
        require(
            characters <= room,
            f"vocab_size {vocab_size} has room for {room} pieces and the texts have {characters} characters of several "
            "bytes; lower coverage or raise vocab_size",
        )
        pieces = _join(symbols, sequences, room, rule, least)
        enough(cls.name, len(pieces), room, len(specials))
        return cls(
            tuple(text for text, continues in pieces if not continues),
            specials,
            form,
            tuple(text for text, continues in pieces if continues),
            split,
        )

    @functools.cached_property
    def _tries(self) -> tuple[Trie, Trie]:
        """Of the pieces that begin a word, and of those that go on with one; bytes are in neither."""
        begins = Trie((as_bytes(piece), BYTES + i) for i, piece in enumerate(self.pieces))
        if self.form == "gnmt":
            return begins, begins
        first = BYTES + len(self.pieces)
        return begins, Trie((as_bytes(piece), first + i) for i, piece in enumerate(self.continuations))

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        begins, goes_on = self._tries
        known: dict[bytes, list[int]] = {}
        ids: list[int] = []
        for word in cut(data, self.split):
            if word not in known:
                i, end = begins.longest(word, 0)
                known[word] = [i, *goes_on.greedy(word[end:])] if i >= 0 else [word[0], *goes_on.greedy(word[1:])]
            ids += known[word]
        return np.array(ids, np.int32)


def _symbols(words: Mapping[str, int], marked: bool) -> tuple[list[tuple[str, bool]], dict[tuple[int, ...], int]]:
    """(the symbols that words are made of as (text, goes on with a word), words in these with `_END` behind them)."""
    table: dict[tuple[str, bool], int] = {("", False): _END}
    sequences: dict[tuple[int, ...], int] = {}
    for word, count in words.items():
        keys = [(character, marked and at > 0) for at, character in enumerate(word)]
        sequence = (*(table.setdefault(key, len(table)) for key in keys), _END)
        sequences[sequence] = sequences.get(sequence, 0) + count
    return list(table), sequences


def _join(
    symbols: list[tuple[str, bool]], sequences: Mapping[tuple[int, ...], int], room: int, rule: str, least: int
) -> list[tuple[str, bool]]:
    """The symbols of more than one byte, in the order in which they were made, at most ``room``."""
    table = {symbol: i for i, symbol in enumerate(symbols)}
    found = [symbol for symbol in symbols if len(as_bytes(symbol[0])) > 1]
    pairs = PairCounts(sequences)
    scores = _Scores(pairs.counts, len(symbols) + room)
    while len(found) < room:
        best = scores.best(rule, least)
        if best is None:
            break
        left, right = best
        joined = symbols[left][0] + symbols[right][0], symbols[left][1]
        if joined not in table:  # two pairs may spell the same piece
            table[joined] = len(symbols)
            symbols.append(joined)
            found.append(joined)
        scores.update(pairs.merge(left, right, table[joined]))
    return found


class _Scores:
    """The counts of pairs and of symbols, in arrays."""

    def __init__(self, counts: Mapping[tuple[int, int], int], symbols: int) -> None:
        self._slots: dict[tuple[int, int], int] = {}
        self._left = np.zeros(0, np.int64)
        self._right = np.zeros(0, np.int64)
        self._count = np.zeros(0, np.int64)
        self._singles = np.zeros(symbols, np.int64)
        self.update(counts)

    def update(self, changed: Mapping[tuple[int, int], int]) -> None:
        """Takes in the pairs whose count changed, with their new count."""
        for pair in changed:
            if pair not in self._slots:
                self._slots[pair] = len(self._slots)
        if len(self._slots) > len(self._count):
            self._left, self._right, self._count = (
                np.append(array, np.zeros(len(self._slots), np.int64))
                for array in (self._left, self._right, self._count)
            )
        if not changed:
            return
        slots = np.array([self._slots[pair] for pair in changed])
        new = np.array(list(changed.values()), np.int64)
        lefts = np.array([left for left, _ in changed])
        np.add.at(self._singles, lefts, new - self._count[slots])
        self._left[slots], self._right[slots] = lefts, [right for _, right in changed]
        self._count[slots] = new

    def best(self, rule: str, least: int) -> tuple[int, int] | None:
        """The pair to join, if one has ``least`` occurrences."""
        live = np.flatnonzero((self._count >= least) & (self._right != _END))
        if not len(live):
            return None
        left, right, count = self._left[live], self._right[live], self._count[live]
        if rule == "count":
            score = count.astype(np.float64)
        elif rule == "ratio":
            score = count / (self._singles[left] * self._singles[right].astype(np.float64))
        else:
            score = self._gain(left, right, count)
        ties = np.flatnonzero(score == score.max())
        chosen = ties[np.lexsort((right[ties], left[ties], -count[ties]))[0]]
        return int(left[chosen]), int(right[chosen])

    def _gain(self, left: NDArray[np.int64], right: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
        """The rise of sum c log c - N log N; of a doubled symbol at most half of the occurrences can be joined."""
        double = left == right
        count = np.where(double, np.minimum(count, self._singles[left] // 2), count)
        total = self._singles.sum()
        parts = _n_log_n(self._singles)
        rest = np.where(
            double,
            _n_log_n(self._singles[left] - 2 * count) - parts[left],
            _n_log_n(self._singles[left] - count) + _n_log_n(self._singles[right] - count) - parts[left] - parts[right],
        )
        return _n_log_n(count) + rest - _n_log_n(total - count) + _n_log_n(total)


def _n_log_n(count: NDArray[np.int64]) -> NDArray[np.float64]:
    return count.astype(np.float64) * np.log(np.maximum(count, 1))
