"""Reversing n random symbols: once (mc), twice (mc2x), or reversed and then in the order read (mcrv).

Definitions from McGill-NLP/length-generalization (make_reverse_dataset.py): 100 symbols, ``[NEXT]`` between the two
halves. Length: n. Claim: no position encoding extrapolates well here (the authors' best is .24 on mc at twice the
length). Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxlm.data.tasks.base import Task, alphabet, encoded_length, require_symbols


@dataclasses.dataclass(frozen=True)
class ReverseMc(Task):
    """``a b c`` -> ``c b a``."""

    symbols: int = 100

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols)

    @property
    def words(self) -> tuple[str, ...]:
        return alphabet(self.symbols)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        words = self.words
        return self._spell([words[i] for i in rng.integers(self.symbols, size=length)])

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell([self.words[0]] * length))

    def _spell(self, symbols: list[str]) -> tuple[list[str], list[str]]:
        return symbols, symbols[::-1]


@dataclasses.dataclass(frozen=True)
class ReverseMc2x(ReverseMc):
    """``a b c`` -> ``c b a [NEXT] c b a``."""

    @property
    def words(self) -> tuple[str, ...]:
        return (*alphabet(self.symbols), "[NEXT]")

    def _spell(self, symbols: list[str]) -> tuple[list[str], list[str]]:
        return symbols, [*symbols[::-1], "[NEXT]", *symbols[::-1]]


@dataclasses.dataclass(frozen=True)
class ReverseMcrv(ReverseMc2x):
    """``a b c`` -> ``c b a [NEXT] a b c``."""

    def _spell(self, symbols: list[str]) -> tuple[list[str], list[str]]:
        return symbols, [*symbols[::-1], "[NEXT]", *symbols]
