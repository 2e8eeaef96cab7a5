"""Translation word by word: each word of the source has one of the target language, in the source's order.

``s4 s0 s7`` -> ``t4 t0 t7``; or, with the source reversed, ``s7 s0 s4`` -> ``t4 t0 t7``, which brings the first word to
write close to the first word to read (Sutskever et al. 2014, Sequence to Sequence Learning with Neural Networks). The
two languages share no words, so which word is which has to be learned.

Length: the words. Claim: without attention an LSTM learns the reversed source in fewer steps; with it there is no
difference. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.data.tasks.base import Task, encoded_length

ORDERS = ("forward", "reversed")


@dataclasses.dataclass(frozen=True)
class Translation(Task):
    """``s4 s0`` -> ``t4 t0``.

    Attributes:
      language: words of each of the two.
      source: ``"forward"``, or ``"reversed"``: how the source is read; the target is written forward.
    """

    paper: ClassVar[str] = "Sutskever et al. 2014, Sequence to Sequence Learning with Neural Networks"

    language: int = 26
    source: str = "forward"

    def check(self) -> None:
        super().check()
        require(self.language >= 1, f"Translation.language: expected a positive integer, got {self.language}")
        choose("Translation.source", self.source, ORDERS)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(f"{side}{i}" for side in "st" for i in range(self.language))

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        ids = rng.integers(self.language, size=length).tolist()
        read = ids if self.source == "forward" else ids[::-1]
        return [f"s{i}" for i in read], [f"t{i}" for i in ids]

    def tokens_bound(self, length: int) -> int:
        return encoded_length(["s0"] * length, ["t0"] * length)
