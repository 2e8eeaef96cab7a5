"""The longest increasing subsequence, by dynamic programming written out cell by cell.

``3 1 2`` -> ``3 : 1 1 , 1 : 1 1 , 2 : 2 2 = 2``: each item, the length of the longest increasing subsequence that ends
there, the longest so far. Where only items up to m places before may precede an item (``lookback``), what a cell needs
is in the last m cells; Yang et al. 2024 (Can Mamba Always Enjoy the "Free Lunch"?) prove that a state of fixed size
then suffices, however long the whole is.

Length: the items. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Task, encoded_length


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
        require(self.numbers >= 1, f"Lis.numbers: expected a positive integer, got {self.numbers}")
        require(self.lookback >= 0, f"Lis.lookback: expected an integer >= 0, got {self.lookback}")

    @property
    def words(self) -> tuple[str, ...]:
        return (*map(str, range(1, self.numbers + 1)), ":", ",", "=")

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._spell(rng.integers(1, self.numbers + 1, size=length).tolist())

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell([1] * length))

    def _spell(self, items: list[int]) -> tuple[list[str], list[str]]:
        target: list[str] = []
        lengths: list[int] = []
        for i, item in enumerate(items):
            start = max(0, i - self.lookback) if self.lookback else 0
            lengths.append(1 + max((lengths[j] for j in range(start, i) if items[j] < item), default=0))
            target += [*([","] if i else []), str(item), ":", str(lengths[i]), str(max(lengths))]
        return list(map(str, items)), [*target, "=", str(max(lengths))]
