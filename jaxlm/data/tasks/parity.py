"""Parity: is the number of ones even? ``1 0 1`` -> ``yes``.

Format and scratchpad from McGill-NLP/length-generalization (make_parity_dataset.py, parity_instance_processor.py):
uniform bits, ``**`` for exclusive or, ``par`` for the running parity. The commas of their lists are dropped: here every
element is one token. Length: the bits. Claim: the scratchpad helps. Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxlm.data.tasks.base import encoded_length
from jaxlm.data.tasks.scratchpad import MARKERS, ScratchpadTask, Step


@dataclasses.dataclass(frozen=True)
class Parity(ScratchpadTask):
    """``1 0 1`` -> ``yes`` (even), ``1 0 0`` -> ``no``."""

    @property
    def words(self) -> tuple[str, ...]:
        return ("0", "1", "yes", "no", "**", "=", ":", "par", *MARKERS)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        return self._spell(rng.integers(2, size=length).tolist())

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell([0] * length))

    def _spell(self, bits: list[int]) -> tuple[list[str], list[str]]:
        return list(map(str, bits)), self.scratchpad.write(_prefixes(bits), ["no" if sum(bits) % 2 else "yes"])


def _prefixes(bits: list[int]) -> Iterator[Step]:
    """The parity of each prefix in turn."""
    parity = 0
    for i, bit in enumerate(bits):
        before, parity = parity, parity ^ bit
        yield Step(
            input=[str(bit)],
            computation=[str(bit), "**", "par", "=", str(bit), "**", str(before)],
            output=[str(parity)],
            variables=["par", ":", str(parity)],
            remaining=["[", *map(str, bits[i + 1 :]), "]"],
        )
