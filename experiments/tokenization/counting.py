"""Counting letters under different segmentations (Zhang et al. 2024, Counting Ability of Large Language Models).

The same strings of a and b, as single letters, as pairs, or as BPE tokens learned on such strings; the answer is the
number of a, with or without a running tally before it (one number per token of the string: the chain of thought). The
model is the same, and so are the steps; what differs is whether it sees the letters it is to count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from experiments import panels
from experiments import study as frame
from experiments.claims import Line, between
from experiments.panels import Panels
from experiments.tokenization.frame import Arm, Found, Results, Run, Study
from experiments.tokenization.language_model import SmallModel, Training, first_wrong
from jaxlm.core.config import require
from jaxlm.tokenize import merges

PAD, ASK, END = range(3)  # before the numbers, and those before the pieces
PIECES = ("letters", "pairs", "bpe")
TALLIES = {"with a tally": True, "without": False}
LETTERS = "ab"


class Cut:
    """A string as numbers of pieces; ``texts`` are the pieces.

    ``bpe`` has so many merges, learned on strings of the same kind.
    """

    def __init__(self, kind: str, longest: int, number: int):
        self.texts: list[str] = [*LETTERS]
        if kind == "pairs":
            self.texts += [a + b for a in LETTERS for b in LETTERS]
        self._ranks: dict[tuple[int, int], int] = {}
        if kind == "bpe":
            draws, words = np.random.default_rng(0), {}
            for size in draws.integers(1, longest + 1, 5000).tolist():
                word = tuple(ord(LETTERS[i]) for i in draws.integers(0, 2, size))
                words[word] = words.get(word, 0) + 1
            learned = [(step.left, step.right) for step in merges.learn(words, number)]
            self._ranks = merges.ranks_of(learned)
            self.texts += [piece.decode() for piece in merges.bytes_of(learned)[merges.BYTES :]]
        self._kind = kind
        self._id = {text: i for i, text in enumerate(self.texts)}

    def __call__(self, text: str) -> list[int]:
        if self._kind == "bpe":
            ids = merges.apply(text.encode(), self._ranks)
            return [self._id[chr(i)] if i < merges.BYTES else i - merges.BYTES + len(LETTERS) for i in ids]
        step = 2 if self._kind == "pairs" else 1
        return [self._id[text[i : i + step]] for i in range(0, len(text), step)]


@dataclasses.dataclass(frozen=True)
class Strings:
    """Fresh strings at every step, as tokens: the pieces, ASK, the tally of a after each piece, END.

    Attributes:
      longest: letters that a string has at most; it has at least one.
      batch_size: strings a step.
      cut: a string as pieces.
      tally: whether the count after each piece is written, or the last one alone.
      seed: of the draws.
    """

    longest: int
    batch_size: int
    cut: Cut
    tally: bool = True
    seed: int = 0

    def __call__(self, step: int) -> dict[str, NDArray]:
        return self.draw(np.random.default_rng((self.seed, 0, step)), self.batch_size)[0]

    def draw(self, draws: np.random.Generator, number: int) -> tuple[dict[str, NDArray], NDArray[np.int64]]:
        """A batch, and the length of each string in letters, [B]."""
        length = 2 * self.longest + 2
        tokens, weights = np.full((number, length), PAD, np.int32), np.zeros((number, length), np.float32)
        sizes = draws.integers(1, self.longest + 1, number)
        for row, size in enumerate(sizes.tolist()):
            text = "".join(LETTERS[i] for i in draws.integers(0, 2, size))
            pieces = self.cut(text)
            tallies = np.cumsum([self.cut.texts[piece].count(LETTERS[0]) for piece in pieces]).tolist()
            first = END + 1
            answer = [first + n for n in (tallies if self.tally else tallies[-1:])] + [END]
            asked = [first + self.longest + 1 + piece for piece in pieces] + [ASK]
            tokens[row, : len(asked) + len(answer)] = asked + answer
            weights[row, len(asked) : len(asked) + len(answer)] = 1
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights[:, 1:]}, sizes


@dataclasses.dataclass(frozen=True)
class Counting(Study):
    """The study of counting.

    Attributes:
      longest: letters that a string has at most.
      merges: of the BPE.
      model: the transformer.
      strings: that are read.
    """

    name: ClassVar[str] = "counting"
    claim: ClassVar[str] = (
        "the same model counts the same letters well where each is a token, and worse the more a token hides "
        "(Zhang et al. 2024)"
    )
    axes: ClassVar[tuple[str, str]] = ("letters of the string", "accuracy of the count")

    longest: int = 20
    merges: int = 30
    model: SmallModel = SmallModel(layers=3, batch_size=64, steps=1500, rate=1e-3)
    strings: int = 1000

    def check(self) -> None:
        super().check()
        require(self.longest >= 2, f"Counting.longest: expected at least 2 letters, got {self.longest}")
        require(self.merges >= 1, f"Counting.merges: expected at least 1, got {self.merges}")
        require(self.strings > 0, f"Counting.strings: expected a positive number, got {self.strings}")

    def arms(self) -> Sequence[Arm]:
        return [Arm(part, pieces, self.model.steps) for part in TALLIES for pieces in PIECES]

    def runner(self, arm: Arm, progress: frame.Report) -> Run:
        cut = Cut(arm.label, self.longest, self.merges)
        strings = Strings(self.longest, self.model.batch_size, cut, TALLIES[arm.part])
        vocabulary = END + 1 + self.longest + 1 + len(cut.texts)
        training = Training(self.model, vocabulary, lambda seed: dataclasses.replace(strings, seed=seed), progress)

        def run(seed: int) -> Iterator[Found]:
            params, _ = training(seed)
            batch, sizes = strings.draw(np.random.default_rng((seed, 1)), self.strings)
            right = first_wrong(training.model, params, batch) < 0
            for size in sorted(set(sizes.tolist())):
                yield Found("accuracy", float(right[sizes == size].mean()), size)
            yield Found("score", float(right.mean()))

        return run

    def lines(self, found: Results) -> Iterator[Line]:
        for part in TALLIES:
            letters, bpe = (found.of(part, pieces, "score") for pieces in ("letters", "bpe"))
            if letters and TALLIES[part]:
                yield Line(f"{part}: letters are counted", 0.99, True, letters)
            if letters and bpe:
                yield Line(f"{part}: letters over BPE", 0.15, True, between(letters, bpe))

    def columns(self, found: Results, part: str) -> dict[str, Callable[[str], dict[int, float]]]:
        sizes = sorted({max(1, self.longest // 4), self.longest // 2, self.longest})
        at = lambda size: lambda label: found.of(part, label, "accuracy", size)
        return {"all": lambda label: found.of(part, label, "score"), **{f"{n} letters": at(n) for n in sizes}}

    def panels(self, found: Results) -> Panels:
        out: Panels = {}
        for arm in self.arms():
            panels.add(out, arm.part, arm.label, found.curve(arm.part, arm.label, "accuracy"))
        return out
