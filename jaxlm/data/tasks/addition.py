"""Addition of two numbers written as separate digits, most significant first: ``9 9 + 1`` -> ``1 0 0``.

Format and scratchpad from McGill-NLP/length-generalization (make_addition_dataset.py, addition_instance_processor.py):
no leading zeros except for 0 itself; column by column from the right, the shorter number padded with zeros, one more
step when a carry is left over. The remaining input drops its leading zeros, as in the authors' code.

Numbers may be written least significant digit first (``reverse``), the order in which carries go, which the position
encoding abacus needs. With ``coupled``, examples carry what a position encoding looks up (Cho et al. 2024, Position
Coupling): digits of equal weight share an id, in operands and answer, counted from the units; whatever is no digit has
the id before. All are shifted by a start, drawn from 0..max_start in training and else 0.

Length: the digits of the longer number; the other is uniformly shorter or equal (down to the shortest trained length),
so a test example has at least one number beyond the training bound, which is the authors' split.
Claim: without a scratchpad nothing extrapolates (.15 at best); the scratchpad helps here. Shown by
experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import encoded_length
from jaxlm.data.tasks.scratchpad import MARKERS, ScratchpadTask, Step, digits


@dataclasses.dataclass(frozen=True)
class Addition(ScratchpadTask):
    """``3 6 + 7`` -> ``4 3``."""

    reverse: bool = False
    coupled: bool = False
    max_start: int = 0

    def check(self) -> None:
        super().check()
        require(
            not (self.scratchpad.enabled and (self.reverse or self.coupled)),
            "Addition.scratchpad: its steps are written most significant digit first; set reverse and coupled to False",
        )
        require(self.max_start >= 0, f"Addition.max_start: expected an integer >= 0, got {self.max_start}")

    @property
    def words(self) -> tuple[str, ...]:
        return (*"0123456789", "+", "=", ",", ":", "carry", *MARKERS)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        shorter = int(rng.integers(min(self.train_lengths[0], length), length + 1))
        long, short = _number(rng, length), _number(rng, shorter)
        return self._spell(long, short) if rng.random() < 0.5 else self._spell(short, long)

    def tokens_bound(self, length: int) -> int:
        # All nines is the longest at every place: two-digit column sums, a last carry, no leading zero to drop.
        nines = 10**length - 1
        return encoded_length(*self._spell(nines, nines))

    def places_bound(self, length: int) -> int:
        # The answer may have a digit more, and the units are one after the start.
        return self.max_start + length + 2 if self.coupled else super().places_bound(length)

    def _spell(self, a: int, b: int) -> tuple[list[str], list[str]]:
        order = -1 if self.reverse else 1
        first, second, total = (digits(number)[::order] for number in (a, b, a + b))
        return [*first, "+", *second], self.scratchpad.write(_columns(a, b), total)

    def places(
        self, prompt: Sequence[str], target: Sequence[str], rng: np.random.Generator | None
    ) -> Sequence[int] | None:
        if not self.coupled:
            return None
        start = 0 if rng is None else int(rng.integers(self.max_start + 1))

        def weights(count: int) -> list[int]:
            rising = range(start + 1, start + 1 + count)
            return list(rising if self.reverse else reversed(rising))

        first = prompt.index("+")
        operands = [*weights(first), start, *weights(len(prompt) - first - 1)]
        return [start, *operands, start, *weights(len(target)), start]


def _number(rng: np.random.Generator, length: int) -> int:
    """A uniform number of exactly ``length`` digits (a single digit may be 0); it may exceed 64 bits."""
    first = rng.integers(1 if length > 1 else 0, 10)
    return int("".join(map(str, [first, *rng.integers(10, size=length - 1)])))


def _columns(a: int, b: int) -> Iterator[Step]:
    """The steps, one column each, from the right; a carry that is left over takes one more."""
    carry, width = 0, max(len(digits(a)), len(digits(b)))
    for column in range(width):
        rest_a, rest_b = a // 10 ** (column + 1), b // 10 ** (column + 1)
        rest = ["+"] if column == width - 1 else [*digits(rest_a), "+", *digits(rest_b)]
        step, carry = _column(a // 10**column % 10, b // 10**column % 10, carry, rest)
        yield step
    if carry:
        yield _column(0, 0, carry, ["+"])[0]


def _column(a: int, b: int, carry: int, rest: list[str]) -> tuple[Step, int]:
    """The step of one column and the carry it leaves."""
    total = a + b + carry
    step = Step(
        input=[str(a), ",", str(b)],
        computation=[str(a), "+", str(b), "+", "carry", "=", *digits(a + b), "+", str(carry), "=", *digits(total)],
        output=[str(total % 10)],
        variables=["carry", ":", str(total // 10)],
        remaining=rest,
    )
    return step, total // 10
