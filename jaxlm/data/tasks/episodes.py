"""Repeated episodes: keys are bound to values and recalled, and then again, to other values, with no sign between.

An episode of E = 2: ``k3 v7 k0 v1 k0 v1 k3 v7``, where the values are asked for at the last two keys. A row is many
of these, and the values of each are drawn anew, so a model that does not forget the last one confuses it with this.

Length: the episodes of a row. Claim (Chen et al. 2025, Stuffed Mamba): trained on rows short for its state, a recurrent
model never learns to forget, and fails from the second episode on; longer rows teach it. Shown by
experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.rows import RowTask, answers


@dataclasses.dataclass(frozen=True)
class Episodes(RowTask):
    """``k v k v k v k v`` over and over: E pairs are bound, then recalled in another order.

    Attributes:
      pairs: E, bound in each episode.
      keys: how many keys there are; those of an episode differ.
      values: how many values there are.
    """

    paper: ClassVar[str] = "Chen et al. 2025, Stuffed Mamba: Oversized States Lead to the Inability to Forget"

    pairs: int = 4
    keys: int = 32
    values: int = 32

    def check(self) -> None:
        super().check()
        require(1 <= self.pairs <= self.keys, f"Episodes.pairs: allowed 1..{self.keys}, the keys, got {self.pairs}")
        require(self.values >= 1, f"Episodes.values: expected a positive integer, got {self.values}")

    @property
    def row_words(self) -> tuple[str, ...]:
        return (*(f"k{i}" for i in range(self.keys)), *(f"v{i}" for i in range(self.values)))

    @property
    def episode_size(self) -> int:
        """The words of an episode; the first begins behind the prompt."""
        return 4 * self.pairs

    def row_length(self, length: int) -> int:
        return self.episode_size * length

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        row: list[str] = []
        asked: list[tuple[int, str]] = []
        for _ in range(length):
            keys = [f"k{i}" for i in rng.permutation(self.keys)[: self.pairs]]
            values = [f"v{i}" for i in rng.integers(self.values, size=self.pairs)]
            for i in range(self.pairs):
                row += [keys[i], values[i]]
            for i in rng.permutation(self.pairs):
                asked.append((len(row), values[i]))
                row += [keys[i], values[i]]
        return row, answers(asked, len(row))
