"""Copying: repeat what was read, once or twice.

Definitions from McGill-NLP/length-generalization (make_copy_dataset.py): rsc = "repeat single char" (n times one
symbol), rdc = "repeat double char" (a prompt names two symbols; the second replaces the first in a run of n), cmc =
"copy multi char" (n random symbols). In the 2x forms the target is twice as long; random symbols are separated by
``[NEXT]``, runs are not. rdc2x is ours: the authors have none. The constant words of their text prompts ("Copy:",
"Replace") are dropped.

Length: n, the symbols to copy. Claim: on rsc and rdc without any position encoding the model extrapolates, with
rotary or sinusoidal positions it does not; on cmc T5 and ALiBi are ahead. Shown by
experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.data.tasks.base import Task, alphabet, encoded_length, require_symbols
from jaxlm.data.tasks.symbols import RandomSymbols


@dataclasses.dataclass(frozen=True)
class CopyRsc(Task):
    """``s s s`` -> ``s s s``."""

    symbols: int = 20
    copies: ClassVar[int] = 1

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols)

    @property
    def words(self) -> tuple[str, ...]:
        return alphabet(self.symbols)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._spell(self.words[rng.integers(self.symbols)], length)

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell(self.words[0], length))

    def _spell(self, symbol: str, length: int) -> tuple[list[str], list[str]]:
        return [symbol] * length, [symbol] * (self.copies * length)


@dataclasses.dataclass(frozen=True)
class CopyRsc2x(CopyRsc):
    """``s s s`` -> ``s s s s s s``."""

    copies: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True)
class CopyRdc(Task):
    """``s -> t : s s s`` -> ``t t t``."""

    symbols: int = 20
    copies: ClassVar[int] = 1

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols, least=2)

    @property
    def words(self) -> tuple[str, ...]:
        return (*alphabet(self.symbols), "->", ":")

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        source = int(rng.integers(self.symbols))
        other = (source + int(rng.integers(1, self.symbols))) % self.symbols
        return self._spell(self.words[source], self.words[other], length)

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell(self.words[0], self.words[1], length))

    def _spell(self, source: str, other: str, length: int) -> tuple[list[str], list[str]]:
        return [source, "->", other, ":"] + [source] * length, [other] * (self.copies * length)


@dataclasses.dataclass(frozen=True)
class CopyRdc2x(CopyRdc):
    """``s -> t : s s s`` -> ``t t t t t t``."""

    copies: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True)
class CopyCmc(RandomSymbols):
    """``a b c`` -> ``a b c``."""

    def rewrite(self, symbols: list[str]) -> list[str]:
        return symbols


@dataclasses.dataclass(frozen=True)
class CopyCmc2x(RandomSymbols):
    """``a b c`` -> ``a b c [NEXT] a b c``."""

    markers: ClassVar[tuple[str, ...]] = ("[NEXT]",)

    def rewrite(self, symbols: list[str]) -> list[str]:
        return [*symbols, *self.markers, *symbols]
