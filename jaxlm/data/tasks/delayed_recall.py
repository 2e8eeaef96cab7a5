"""Delayed recall: repeat the first symbols after noise that looks like them.

``3 7 | 1 0 7 5 5`` -> ``3 7`` (without the bar: only the place tells). A state space whose slowest modes are as slow as
the noise is long remembers, by its initialisation alone (Gu et al. 2022, S4; White et al. 2004 for the task).

Length: the words of noise. Claim: S4 with steps from 1 / length on solves it, with steps in [0.1, 1] it does not. Shown
by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Task, alphabet, encoded_length, require_symbols


@dataclasses.dataclass(frozen=True)
class DelayedRecall(Task):
    """``a b noise`` -> ``a b``.

    Attributes:
      recalled: symbols to repeat.
      symbols: what they and the noise are drawn from.
    """

    paper: ClassVar[str] = "Gu et al. 2022, Efficiently Modeling Long Sequences with Structured State Spaces (S4)"

    recalled: int = 8
    symbols: int = 8

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols)
        require(self.recalled >= 1, f"DelayedRecall.recalled: expected a positive integer, got {self.recalled}")

    @property
    def words(self) -> tuple[str, ...]:
        return alphabet(self.symbols)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        prompt = [self.words[i] for i in rng.integers(self.symbols, size=self.recalled + length)]
        return prompt, prompt[: self.recalled]

    def tokens_bound(self, length: int) -> int:
        return encoded_length(["0"] * (self.recalled + length), ["0"] * self.recalled)
