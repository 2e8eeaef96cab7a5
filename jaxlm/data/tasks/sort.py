"""Sorting: single symbols in the order of the vocabulary, or numbers of two to four digits.

Format and scratchpad from McGill-NLP/length-generalization (make_sort_dataset.py, sort_instance_processor.py): 50
ordered symbols ("single digit"), or numbers from 10 to 9999 ("multi digit"); the work is a selection sort that swaps,
``min`` for the authors' constant "The minimum of the unsorted portion". Sorting keeps no variables, and asking for
them is refused, as it is there. Commas between single symbols are dropped. Length: the items. Shown by
experiments/length_generalization.py.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import ALPHABET, alphabet, encoded_length, require_symbols
from jaxlm.data.tasks.numbers import Numbers, write
from jaxlm.data.tasks.scratchpad import MARKERS, Scratchpad, ScratchpadTask, Step


@dataclasses.dataclass(frozen=True)
class _Sort(ScratchpadTask, abc.ABC):
    """The work is the same for symbols and numbers; they differ in how they are drawn and written."""

    scratchpad: Scratchpad = Scratchpad(variables=False)

    def check(self) -> None:
        super().check()
        require(
            not (self.scratchpad.enabled and self.scratchpad.variables),
            f"{type(self).__name__}.scratchpad: sorting has no intermediate variables; set variables=False",
        )

    def _spell(self, items: list[int]) -> tuple[list[str], list[str]]:
        return self._write(items), self.scratchpad.write(self._selections(items), self._write(sorted(items)))

    def _selections(self, items: list[int]) -> Iterator[Step]:
        """The steps of a selection sort: the least of what is left changes places with the first."""
        rest = list(items)
        while rest:
            first, rest = rest[0], rest[1:]
            least = min([first, *rest])
            if least != first:
                rest[rest.index(least)] = first
            yield Step(
                input=self._write([first]),
                computation=["min"],
                output=self._write([least]),
                remaining=["[", *self._write(rest), "]"],
            )

    @abc.abstractmethod
    def _write(self, items: list[int]) -> list[str]:
        """Items (places in the alphabet, or numbers) as words."""


@dataclasses.dataclass(frozen=True)
class SortSingle(_Sort):
    """``c a b a`` -> ``a a b c``."""

    symbols: int = 50

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols)

    @property
    def words(self) -> tuple[str, ...]:
        return (*alphabet(self.symbols), "min", *MARKERS)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._spell(rng.integers(self.symbols, size=length).tolist())

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell([0] * length))

    def _write(self, items: list[int]) -> list[str]:
        return [ALPHABET[item] for item in items]


@dataclasses.dataclass(frozen=True)
class SortMulti(_Sort):
    """``3 0 7 , 4 2`` -> ``4 2 , 3 0 7``."""

    numbers: Numbers = Numbers()

    @property
    def words(self) -> tuple[str, ...]:
        return (*"0123456789", ",", "min", *MARKERS)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._spell(self.numbers.draw(rng, length))

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell([self.numbers.below - 1] * length))

    def _write(self, items: list[int]) -> list[str]:
        return write(items)
