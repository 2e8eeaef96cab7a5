"""Multi-query associative recall: key-value pairs, then each key once more, whose value is asked for.

``13 50 21 33 16 63 0 0 16 0 0 0 13 0 21 0`` asks for 63 at the second 16, 50 at 13, 33 at 21. The format is that of
HazyResearch/zoology (multiquery_ar): V words, 0 between queries, keys from 1 to V/2 - 1 and values from V/2 to V - 1,
both drawn without replacement; D pairs come first, and a query stands at every second word behind them, gap i drawn
without replacement with a probability that goes with i^(a - 1). Values do not follow their queries.

Length: D, the pairs. Claim (Arora et al. 2024, Zoology): attention recalls at any width, a state of fixed size as many
pairs as it is large. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.data.tasks.rows import NOTHING, RowTask, answers

FILLERS = ("zero", "random")


@dataclasses.dataclass(frozen=True)
class Mqar(RowTask):
    """``k v k v 0 0 k 0 k 0`` with a value asked for at each k behind the pairs.

    Attributes:
      row_size: T, the words of a row; at least 4 D.
      values: V, all words: 0, keys and values.
      power: a; the smaller, the nearer to the pairs are queries.
      filler: what stands where there is no query: ``"zero"``, or a ``"random"`` word.
    """

    paper: ClassVar[str] = "Arora et al. 2024, Zoology: Measuring and Improving Recall in Efficient Language Models"

    row_size: int = 80
    values: int = 64
    power: float = 0.01
    filler: str = "zero"

    def check(self) -> None:
        super().check()
        most = max(self.train_lengths[1], self.eval_lengths[1])
        require(
            self.row_size >= 4 * most and self.row_size % 2 == 0,
            f"Mqar.row_size: {most} pairs and their queries need an even number >= {4 * most}, got {self.row_size}",
        )
        require(
            self.values // 2 - 1 >= most,
            f"Mqar.values: {most} keys from 1 to V / 2 - 1 need V >= {2 * most + 2}, got {self.values}",
        )
        require(self.power > 0, f"Mqar.power: expected a number > 0, got {self.power}")
        choose("Mqar.filler", self.filler, FILLERS)

    @property
    def row_words(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.values)))

    def row_length(self, length: int) -> int:
        return self.row_size

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        half, slots = self.values // 2, self.row_size // 2 - length
        keys = 1 + rng.choice(half - 1, size=length, replace=False)
        bound = half + rng.choice(self.values - half, size=length, replace=False)
        chances = np.arange(1, slots + 1) ** (self.power - 1.0)
        gaps = rng.choice(slots, size=length, replace=False, p=chances / chances.sum())
        row = np.zeros(self.row_size, np.int64)
        row[: 2 * length : 2], row[1 : 2 * length : 2] = keys, bound
        places = 2 * length + 2 * gaps
        filled = np.zeros(self.row_size, bool)
        filled[: 2 * length] = True
        filled[places] = True
        if self.filler == "random":
            row = np.where(filled, row, rng.integers(self.values, size=self.row_size))
        row[places] = keys
        asked = zip(places.tolist(), map(str, bound.tolist()), strict=True)
        return [str(word) for word in row.tolist()], answers(asked, self.row_size)


def bound_values(row: Sequence[str], pairs: int, asked: Sequence[bool]) -> list[str]:
    """For each word of a row the value that is bound to it by the first ``pairs`` pairs, where ``asked``; `NOTHING`
    elsewhere. An asked word that is no key has the value ``?``."""
    known = {row[2 * i]: row[2 * i + 1] for i in range(pairs)}
    return [known.get(word, "?") if here else NOTHING for word, here in zip(row, asked, strict=True)]
