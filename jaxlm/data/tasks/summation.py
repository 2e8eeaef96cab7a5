"""The sum of single digits, modulo 10: ``7 + 5 + 9`` -> ``1``.

Format and scratchpad from McGill-NLP/length-generalization (make_sum_dataset.py, sum_instance_processor.py, s2s_sum
with modulo_factor 10): digits 1-9, the running sum is reduced after each step (and the step's output is not). Length:
the numbers to add. Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxlm.data.tasks.base import encoded_length
from jaxlm.data.tasks.scratchpad import MARKERS, ScratchpadTask, Step, digits


@dataclasses.dataclass(frozen=True)
class Summation(ScratchpadTask):
    """``7 + 5 + 9`` -> ``1``."""

    @property
    def words(self) -> tuple[str, ...]:
        return (*"0123456789", "+", "=", ":", "sum", *MARKERS)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._spell(rng.integers(1, 10, size=length).tolist())

    def tokens_bound(self, length: int) -> int:
        # A two-digit partial sum s + v lowers the running sum by 10 - v, so nines keep them coming for the longest.
        return encoded_length(*self._spell([9] * length))

    def _spell(self, values: list[int]) -> tuple[list[str], list[str]]:
        return _join(values), self.scratchpad.write(_partial_sums(values), [str(sum(values) % 10)])


def _partial_sums(values: list[int]) -> Iterator[Step]:
    total = 0
    for i, value in enumerate(values):
        partial, v = digits(total + value), str(value)
        yield Step(
            input=[v],
            computation=[v, "+", "sum", "=", v, "+", str(total), "="],
            output=partial,
            variables=["sum", ":", *partial, "=", partial[-1]],
            remaining=_join(values[i + 1 :]),
        )
        total = (total + value) % 10


def _join(values: list[int]) -> list[str]:
    return " + ".join(map(str, values)).split()
