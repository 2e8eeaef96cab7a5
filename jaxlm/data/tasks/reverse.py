"""Reversing n random symbols: once (mc), twice (mc2x), or reversed and then in the order read (mcrv).

Definitions from McGill-NLP/length-generalization (make_reverse_dataset.py): 100 symbols, ``[NEXT]`` between the two
halves. Length: n. Claim: no position encoding extrapolates well here (the authors' best is .24 on mc at twice the
length). Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxlm.data.tasks.symbols import RandomSymbols


@dataclasses.dataclass(frozen=True)
class ReverseMc(RandomSymbols):
    """``a b c`` -> ``c b a``."""

    def rewrite(self, symbols: list[str]) -> list[str]:
        return symbols[::-1]


@dataclasses.dataclass(frozen=True)
class ReverseMc2x(RandomSymbols):
    """``a b c`` -> ``c b a [NEXT] c b a``."""

    markers: ClassVar[tuple[str, ...]] = ("[NEXT]",)

    def rewrite(self, symbols: list[str]) -> list[str]:
        return [*symbols[::-1], *self.markers, *symbols[::-1]]


@dataclasses.dataclass(frozen=True)
class ReverseMcrv(RandomSymbols):
    """``a b c`` -> ``c b a [NEXT] a b c``."""

    markers: ClassVar[tuple[str, ...]] = ("[NEXT]",)

    def rewrite(self, symbols: list[str]) -> list[str]:
        return [*symbols[::-1], *self.markers, *symbols]
