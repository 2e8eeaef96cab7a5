"""The longest increasing subsequence, by dynamic programming written out cell by cell.

``3 1 2`` -> ``3 : 1 1 , 1 : 1 1 , 2 : 2 2 = 2``: each item, the length of the longest increasing subsequence that ends
there, the longest so far. Where only items up to m places before may precede an item (``lookback``), what a cell needs
is in the last m cells; Yang et al. 2024 (Can Mamba Always Enjoy the "Free Lunch"?) prove that a state of fixed size
then suffices, however long the whole is.

`lis` has all items in the prompt, so that its answer is also a copy of them; in `lis_stream` they come one by one, each
behind the cells of those before, and all there is to do is the cells.

Length: the items. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Task, encoded_length
from jaxlm.data.tasks.rows import RowTask, answers


def cells(items: list[int], lookback: int) -> list[tuple[int, int]]:
    """Of each item: the length of the longest subsequence that ends there, and the longest so far."""
    lengths: list[int] = []
    for i, item in enumerate(items):
        start = max(0, i - lookback) if lookback else 0
        lengths.append(1 + max((lengths[j] for j in range(start, i) if items[j] < item), default=0))
    return [(length, max(lengths[: i + 1])) for i, length in enumerate(lengths)]


def require_numbers(task: Lis | LisStream) -> None:
    name = type(task).__name__
    require(task.numbers >= 1, f"{name}.numbers: expected a positive integer, got {task.numbers}")
    require(task.lookback >= 0, f"{name}.lookback: expected an integer >= 0, got {task.lookback}")


@dataclasses.dataclass(frozen=True)
class Lis(Task):
    """``3 1 2`` -> ``3 : 1 1 , 1 : 1 1 , 2 : 2 2 = 2``.

    Attributes:
      numbers: items are drawn from 1 to this, which therefore also bounds every length.
      lookback: m, how far before an item its predecessor may be; 0 for any distance.
    """

    paper: ClassVar[str] = 'Yang et al. 2024, Can Mamba Always Enjoy the "Free Lunch"?'

    numbers: int = 32
    lookback: int = 0

    def check(self) -> None:
        super().check()
        require_numbers(self)

    @property
    def words(self) -> tuple[str, ...]:
        return (*map(str, range(1, self.numbers + 1)), ":", ",", "=")

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._spell(rng.integers(1, self.numbers + 1, size=length).tolist())

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell([1] * length))

    def _spell(self, items: list[int]) -> tuple[list[str], list[str]]:
        target: list[str] = []
        for i, (item, (length, longest)) in enumerate(zip(items, cells(items, self.lookback), strict=True)):
            target += [*([","] if i else []), str(item), ":", str(length), str(longest)]
        return list(map(str, items)), [*target, "=", target[-1]]


@dataclasses.dataclass(frozen=True)
class LisStream(RowTask):
    """``3 : 1 1 , 1 : 1 1 , 2 : 2 2 ,``, asked for the two numbers behind each ``:``. Fields as in `Lis`."""

    paper: ClassVar[str] = Lis.paper

    numbers: int = 32
    lookback: int = 0

    def check(self) -> None:
        super().check()
        require_numbers(self)

    @property
    def row_words(self) -> tuple[str, ...]:
        return (*map(str, range(1, self.numbers + 1)), ":", ",")

    def row_length(self, length: int) -> int:
        return 5 * length

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        items = rng.integers(1, self.numbers + 1, size=length).tolist()
        row: list[str] = []
        asked: list[tuple[int, str]] = []
        for item, cell in zip(items, cells(items, self.lookback), strict=True):
            ends, longest = map(str, cell)
            asked += [(len(row) + 1, ends), (len(row) + 2, longest)]
            row += [str(item), ":", ends, longest, ","]
        return row, answers(asked, len(row))
