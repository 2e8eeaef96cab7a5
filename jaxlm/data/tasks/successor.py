"""The successor in a list: given numbers and one of them, the next larger one: ``3 0 , 7 , 4 2 ? 7`` -> ``3 0``.

The auxiliary task of Awasthi and Gupta 2023, Improving Length-Generalization in Transformers via Task Hinting: sorting
is repeated answers to this question, and a model that is trained on both (`mixture`) sorts longer lists. The authors
mix it in per batch; here it is per example. What follows the greatest is ``end``. Numbers are written as in sort_multi.

Length: the numbers of the list. Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.data.tasks.base import Task, encoded_length
from jaxlm.data.tasks.numbers import Numbers, write
from jaxlm.data.tasks.scratchpad import digits

END = "end"


@dataclasses.dataclass(frozen=True)
class Successor(Task):
    """``3 0 , 7 , 4 2 ? 7`` -> ``3 0``."""

    paper: ClassVar[str] = "Awasthi and Gupta 2023, Improving Length-Generalization in Transformers via Task Hinting"

    numbers: Numbers = Numbers()

    @property
    def words(self) -> tuple[str, ...]:
        return (*"0123456789", ",", "?", END)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        items = self.numbers.draw(rng, length)
        of = items[int(rng.integers(length))]
        larger = [item for item in items if item > of]
        return [*write(items), "?", *digits(of)], digits(min(larger)) if larger else [END]

    def tokens_bound(self, length: int) -> int:
        most = self.numbers.below - 1
        return encoded_length([*write([most] * length), "?", *digits(most)], digits(most))
