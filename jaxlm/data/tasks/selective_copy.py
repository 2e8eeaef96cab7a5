"""Selective copying: repeat the symbols, not the noise between them.

``. 3 . . 7 1 .`` -> ``3 7 1``. The symbols stand at random places among blanks, so that a model must choose by what
it reads what it keeps (Gu and Dao 2023, Mamba, section 4.1; Jing et al. 2019). MAD (Poli et al. 2024) has 16 of 16
symbols in 256 words.

Length: the blanks. Claim: selection by the input solves it, time-invariant state spaces do not. Shown by
experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Task, alphabet, encoded_length, require_symbols

BLANK = "."


@dataclasses.dataclass(frozen=True)
class SelectiveCopy(Task):
    """``. 3 . . 7`` -> ``3 7``.

    Attributes:
      kept: symbols to repeat.
      symbols: what they are drawn from.
    """

    paper: ClassVar[str] = "Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces"

    kept: int = 4
    symbols: int = 16

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols)
        require(self.kept >= 1, f"SelectiveCopy.kept: expected a positive integer, got {self.kept}")

    @property
    def words(self) -> tuple[str, ...]:
        return (*alphabet(self.symbols), BLANK)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        target = [alphabet(self.symbols)[i] for i in rng.integers(self.symbols, size=self.kept)]
        prompt = [BLANK] * (length + self.kept)
        places = np.sort(rng.choice(len(prompt), size=self.kept, replace=False))
        for place, symbol in zip(places.tolist(), target, strict=True):
            prompt[place] = symbol
        return prompt, target

    def tokens_bound(self, length: int) -> int:
        return encoded_length([BLANK] * (length + self.kept), [BLANK] * self.kept)
