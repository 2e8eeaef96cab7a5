"""What the tasks on lists of numbers share: a range to draw from, and how a list is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxlm.core.config import Spec, require
from jaxlm.data.tasks.scratchpad import digits


@dataclasses.dataclass(frozen=True)
class Numbers(Spec):
    """Uniform whole numbers.

    Attributes:
      least: the least of them.
      below: one more than the greatest.
    """

    least: int = 10
    below: int = 10_000

    def check(self) -> None:
        require(
            0 <= self.least < self.below < 2**63,
            f"Numbers: allowed 0 <= least < below < 2**63, got {self.least} and {self.below}",
        )

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        return rng.integers(self.least, self.below, size=count).tolist()


def write(numbers: Iterable[int]) -> list[str]:
    """Numbers as digits between commas."""
    words: list[str] = []
    for number in numbers:
        words += [",", *digits(number)] if words else digits(number)
    return words
