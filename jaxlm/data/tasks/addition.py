"""Addition of two numbers written as separate digits, most significant first: ``9 9 + 1`` -> ``1 0 0``.

Format and scratchpad from McGill-NLP/length-generalization (make_addition_dataset.py, addition_instance_processor.py):
no leading zeros except for 0 itself; column by column from the right, the shorter number padded with zeros, one more
step when a carry is left over. The remaining input drops its leading zeros, as in the authors' code.

Length: the digits of the longer number; the other is uniformly shorter or equal (down to the shortest trained length),
so a test example has at least one number beyond the training bound, which is the authors' split.
Claim: without a scratchpad nothing extrapolates (.15 at best); the scratchpad helps here. Shown by
experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxlm.data.tasks.base import encoded_length
from jaxlm.data.tasks.scratchpad import MARKERS, ScratchpadTask, Step, digits


@dataclasses.dataclass(frozen=True)
class Addition(ScratchpadTask):
    """``3 6 + 7`` -> ``4 3``."""

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

    def _spell(self, a: int, b: int) -> tuple[list[str], list[str]]:
        return [*digits(a), "+", *digits(b)], self.scratchpad.write(_columns(a, b), digits(a + b))


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
