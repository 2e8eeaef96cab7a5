"""What the tasks on n random symbols share: the symbols, and a rule from those read to those to write."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.data.tasks.base import Task, alphabet, encoded_length, require_symbols


@dataclasses.dataclass(frozen=True)
class RandomSymbols(Task):
    """``length`` symbols, each drawn from ``symbols``; a task says what to write (`rewrite`) and with which markers."""

    symbols: int = 100
    markers: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols)

    @property
    def words(self) -> tuple[str, ...]:
        return (*alphabet(self.symbols), *self.markers)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        words = self.words
        prompt = [words[i] for i in rng.integers(self.symbols, size=length)]
        return prompt, self.rewrite(prompt)

    def tokens_bound(self, length: int) -> int:
        prompt = [self.words[0]] * length
        return encoded_length(prompt, self.rewrite(prompt))

    def rewrite(self, symbols: list[str]) -> list[str]:
        """The target for the symbols of a prompt."""
        raise NotImplementedError
