"""Less-is-Better (Yang 2024, Rethinking Tokenization; Yang, Frank and van den Bosch 2020, Less is Better).

A memory of chunks in order of rank grows and shrinks while it reads. A sentence is cut by the longest chunk at every
place; a text is encoded so too. Of each article that is read:

    join      two neighbouring chunks of together at most ``longest`` characters are a candidate with probability
              ``admit``; a candidate that comes up again in the article enters the memory at the end. So do runs of at
              most ``gap`` characters that no chunk covers.
    compare   a chunk against the second longest at its place: both readings go on by the longest match until they meet.
              Fewer unknown characters win, then fewer chunks, then the smaller sum of ranks.
    move      a chunk that won goes up by ``move`` of its rank, one that lost goes down (out, past the end) and the
              shorter one goes up in its place.
    forget    the last ``forget`` of the memory, one chunk at least, will die after ``life`` articles unless it is used.

The vocabulary is the first chunks of the memory. What no chunk covers is spelt in bytes. Comparisons that have not met
when a sentence ends are dropped, as in the authors' code, which was run beside this on the same random numbers: as long
as every character is known, memory and lives are the same after every article.
0.5 MB of code, CPU-seconds (results/benchmark/tokenize.txt): 4096 ids in 4, encoding 0.1.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.tokenize.base import BYTES, as_bytes
from jaxlm.tokenize.pieces import SPECIALS, PieceTokenizer, enough, room_for_pieces
from jaxlm.tokenize.pretokens import split as cut
from jaxlm.tokenize.trie import Trie


@dataclasses.dataclass(frozen=True)
class LessIsBetterTokenizer(PieceTokenizer):
    """Chunks in order of rank, greedy longest match, nothing split in front."""

    name: ClassVar[str] = "less_is_better"
    paper: ClassVar[str] = "Yang 2024, Rethinking Tokenization: Crafting Better Tokenizers for Large Language Models"

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes] = (),
        vocab_size: int | None = None,
        *,
        specials: tuple[str, ...] = SPECIALS,
        passes: int = 3,
        lines: int = 200,
        longest: int = 12,
        admit: float = 0.25,
        forget: float = 0.0001,
        move: float = 0.2,
        gap: int = 2,
        life: int = 10,
        seed: int = 0,
    ) -> Self:
        """Reads the texts ``passes`` times, in articles of ``lines`` lines (across texts) in random order.

        Raises `ConfigError` if the memory then holds too few chunks for ``vocab_size``.
        """
        room = room_for_pieces(cls.name, vocab_size, len(specials))
        require(passes > 0 and lines > 0, f"passes and lines must be positive, got {passes} and {lines}")
        sentences = [sentence for text in texts for sentence in _sentences(as_bytes(text))]
        articles = [sentences[at : at + lines] for at in range(0, len(sentences), lines)]
        rng = random.Random(seed)
        memory = Memory(longest=longest, admit=admit, forget=forget, move=move, gap=gap, life=life)
        order = [i for _ in range(passes) for i in rng.sample(range(len(articles)), len(articles))]
        if order:
            memory.begin(articles[order[0]])
        for i in order:
            memory.read(articles[i], rng)
        chunks = [chunk for chunk in memory.chunks if len(chunk.encode()) > 1]
        enough(cls.name, len(chunks), room, len(specials))
        return cls(tuple(chunks[:room]), specials)

    @functools.cached_property
    def _trie(self) -> Trie:
        return Trie((as_bytes(piece), BYTES + i) for i, piece in enumerate(self.pieces))

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        return np.array(self._trie.greedy(data), np.int32)


def _sentences(data: bytes) -> list[str]:
    """Lines, cut at bytes that are not UTF-8."""
    lines = (line.decode("utf-8", "surrogateescape") for line in cut(data, ("lines",)))
    return [part for line in lines for part in re.split("[\udc80-\udcff]+", line) if part]


@dataclasses.dataclass
class Memory:
    """The ordered memory while it reads; the parameters are those of `LessIsBetterTokenizer.train`.

    Attributes:
      chunks: the memory, the best rank first.
      dying: chunk -> articles it has left.
    """

    longest: int = 12
    admit: float = 0.25
    forget: float = 0.0001
    move: float = 0.2
    gap: int = 2
    life: int = 10
    chunks: list[str] = dataclasses.field(default_factory=list)
    dying: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.longest > 1, f"longest must be 2 or more, got {self.longest}")
        require(0 < self.admit <= 1, f"admit must be above 0 and at most 1, got {self.admit}")
        require(0 <= self.forget < 1, f"forget must be at least 0 and below 1, got {self.forget}")
        require(0 <= self.move <= 1, f"move must be between 0 and 1, got {self.move}")
        require(self.life > 0, f"life must be positive, got {self.life}")
        self._rank = {chunk: i for i, chunk in enumerate(self.chunks)}

    def begin(self, article: Sequence[str]) -> None:
        """The characters of an article, by code point, are the first chunks."""
        for character in sorted({character for sentence in article for character in sentence}):
            self._append(character)
            self.dying[character] = self.life

    def read(self, article: Sequence[str], rng: random.Random) -> None:
        """Reads the sentences of one article and then moves, adds and forgets chunks."""
        verdicts: list[tuple[str, int]] = []  # chunk, and -1 to go up or 1 to go down
        candidates: set[str] = set()
        for sentence in article:
            self._read(sentence, rng, candidates, verdicts)
        gone = set()
        for chunk, left in list(self.dying.items()):
            if left <= 1:
                del self.dying[chunk]
                gone.add(chunk)
            else:
                self.dying[chunk] = left - 1
        if gone:
            self.chunks = [chunk for chunk in self.chunks if chunk not in gone]
        self._move([verdict for verdict in verdicts if verdict[0] not in gone])
        for chunk in self.chunks[int((1 - self.forget) * len(self.chunks)) :]:
            self.dying.setdefault(chunk, self.life)

    def _append(self, chunk: str) -> None:
        self._rank[chunk] = len(self.chunks)
        self.chunks.append(chunk)

    def _match(self, sentence: str, at: int, width: int) -> str:
        """The longest chunk of at most ``width`` characters at a place, ``""`` if there is none."""
        for end in range(min(at + width, len(sentence)), at, -1):
            if sentence[at:end] in self._rank:
                return sentence[at:end]
        return ""

    def _read(self, sentence: str, rng: random.Random, candidates: set[str], verdicts: list[tuple[str, int]]) -> None:
        open_: dict[str, _Comparison] = {}
        last, known = "", False
        at = 0
        while at < len(sentence):
            for chunk in list(open_):
                if self._advance(open_[chunk], sentence, at):
                    self._judge(chunk, open_.pop(chunk), verdicts)
            chunk = self._match(sentence, at, self.longest)
            for comparison in open_.values():
                comparison.ours.append(chunk)
            if not chunk:
                last = sentence[at] if known else last + sentence[at]
                known = False
                at += 1
                continue
            if len(chunk) + 2 <= self.longest and rng.random() < self.admit:
                joined = last + chunk if known and len(last) + len(chunk) <= self.longest else ""
                self._propose(joined if known else last if len(last) <= self.gap else "", candidates)
            shorter = self._match(sentence, at, len(chunk) - 1) if len(chunk) > 1 else ""
            if shorter:
                open_[chunk] = _Comparison(at + len(shorter), [chunk], [shorter])
            else:
                self.dying.pop(chunk, None)
            at += len(chunk)
            last, known = chunk, True

    def _propose(self, candidate: str, candidates: set[str]) -> None:
        if not candidate or candidate in self._rank:
            return
        if candidate in candidates:
            candidates.remove(candidate)
            self._append(candidate)
        else:
            candidates.add(candidate)

    def _advance(self, comparison: _Comparison, sentence: str, at: int) -> bool:
        """Goes on with the other reading up to ``at``; whether the two meet there."""
        while comparison.end < at:
            chunk = self._match(sentence, comparison.end, self.longest)
            comparison.others.append(chunk)
            comparison.end += len(chunk) or 1
        return comparison.end == at

    def _judge(self, chunk: str, comparison: _Comparison, verdicts: list[tuple[str, int]]) -> None:
        def badness(chunks: list[str]) -> tuple[int, int, int]:
            found = [c for c in chunks if c]
            return len(chunks) - len(found), len(found), sum(self._rank[c] for c in found)

        if badness(comparison.ours) > badness(comparison.others):
            verdicts += [(chunk, 1), (self._match(chunk, 0, len(chunk) - 1), -1)]
        else:
            verdicts.append((chunk, -1))
            self.dying.pop(chunk, None)

    def _move(self, verdicts: list[tuple[str, int]]) -> None:
        chunks = self.chunks
        rank = {chunk: i for i, chunk in enumerate(chunks)}
        removed: set[str] = set()
        for done, (chunk, direction) in enumerate(verdicts):
            if chunk in removed:
                continue
            # Each move shifts the others by one place at most.
            at = chunks.index(chunk, max(0, rank[chunk] - done), rank[chunk] + done + 1)
            if at == 0:
                continue
            to = at + direction * (int(at * self.move) + 1)
            del chunks[at]
            if to <= len(chunks):
                chunks.insert(to, chunk)
                rank[chunk] = to
            else:
                removed.add(chunk)
        self._rank = {chunk: i for i, chunk in enumerate(chunks)}


@dataclasses.dataclass
class _Comparison:
    """Two readings of a place: ``ours`` from the longest chunk on, ``others`` from the second, which is at ``end``."""

    end: int
    ours: list[str]
    others: list[str]
