"""Edit distance, by dynamic programming written out cell by cell.

``a b / b b`` -> ``a : 0 1 0 2 , b : 0 1 0 1 = 0 1``: for each symbol of the first string a row, with how many
insertions, deletions and substitutions make the first string up to it into the second up to each of its symbols, in two
digits. A cell needs its left, upper and upper left neighbours, so how far a model has to look back is the length of a
row. Where only cells near the diagonal are written (``lookback`` m: |i - j| < m), that is 2 m - 1 cells, however
long the strings, and the answer is the distance of alignments that stay there (Yang et al. 2024, Can Mamba Always
Enjoy the "Free Lunch"?).

Length: the symbols of each string. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
import string
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Task, encoded_length


@dataclasses.dataclass(frozen=True)
class EditDistance(Task):
    """``a b / b b`` -> ``a : 0 1 0 2 , b : 0 1 0 1 = 0 1``.

    Attributes:
      letters: what strings are drawn from.
      lookback: m, cells from the diagonal to its side that are written, the diagonal's own among them; 0 for all.
    """

    paper: ClassVar[str] = 'Yang et al. 2024, Can Mamba Always Enjoy the "Free Lunch"?'

    letters: int = 4
    lookback: int = 0

    def check(self) -> None:
        super().check()
        require(2 <= self.letters <= 26, f"EditDistance.letters: allowed 2..26, got {self.letters}")
        most = max(self.train_lengths[1], self.eval_lengths[1])
        require(most <= 99, f"EditDistance: distances have two digits, so lengths are 99 or less, got {most}")
        require(self.lookback >= 0, f"EditDistance.lookback: expected an integer >= 0, got {self.lookback}")

    @property
    def words(self) -> tuple[str, ...]:
        return (*string.ascii_lowercase[: self.letters], *string.digits, "/", ":", ",", "=")

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        letters = self.words[: self.letters]
        one, two = ([letters[i] for i in rng.integers(self.letters, size=length)] for _ in range(2))
        return self._spell(one, two)

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell(["a"] * length, ["a"] * length))

    def _spell(self, one: list[str], two: list[str]) -> tuple[list[str], list[str]]:
        size, reach = len(one), self.lookback or len(one) + 1
        # The border of the whole table: a string from nothing, or to nothing; within reach of the diagonal alone.
        never = 2 * size + 1
        above = [j if j < reach else never for j in range(size + 1)]
        target: list[str] = []
        for i in range(1, size + 1):
            row = [i if i < reach else never]
            for j in range(1, size + 1):
                change = above[j - 1] + (one[i - 1] != two[j - 1])
                row.append(min(change, above[j] + 1, row[j - 1] + 1) if abs(i - j) < reach else never)
            written = [digit for j in range(1, size + 1) if abs(i - j) < reach for digit in f"{row[j]:02d}"]
            target += [*([","] if i > 1 else []), one[i - 1], ":", *written]
            above = row
        return [*one, "/", *two], [*target, "=", *f"{above[-1]:02d}"]
