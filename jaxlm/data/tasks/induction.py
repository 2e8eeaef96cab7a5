"""Induction: the last symbol was there before; what followed it then?

``4 b 9 0 0 7 2 b`` -> ``9``. Any symbol may be the one that is asked for: nothing but its return tells (Olsson et al.
2022, In-context Learning and Induction Heads). Where one marked symbol is always the one (Gu and Dao 2023, section 4.1)
it is the task passkey, with a single key.

Length: the words around the symbol's first place. Claim: selective state spaces hold what they learn at 256 words to a
million. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.data.tasks.base import Task, alphabet, encoded_length, require_symbols


@dataclasses.dataclass(frozen=True)
class Induction(Task):
    """``noise b 9 noise b`` -> ``9``; ``symbols`` is what all words are drawn from."""

    paper: ClassVar[str] = "Olsson et al. 2022, In-context Learning and Induction Heads"

    symbols: int = 16

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols, least=2)

    @property
    def words(self) -> tuple[str, ...]:
        return alphabet(self.symbols)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        asked, place = int(rng.integers(self.symbols)), int(rng.integers(length))
        others = rng.integers(self.symbols - 1, size=length)
        noise = [self.words[i] for i in (others + (others >= asked)).tolist()]
        asked = self.words[asked]
        return [*noise[:place], asked, *noise[place:], asked], [noise[place]]

    def tokens_bound(self, length: int) -> int:
        return encoded_length(["0"] * (length + 2), ["0"])
