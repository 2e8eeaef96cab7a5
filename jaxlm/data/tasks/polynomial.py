"""Evaluating a polynomial at a small integer, modulo 10: ``x = -2 in 3 * x ** 2 + -1 * x ** 0`` -> ``1``.

Ranges from McGill-NLP/length-generalization (make_poly_dataset.py, poly_instance_processor.py with modulo_factor 10):
coefficients -3..3, degrees 0..3 (repeats allowed), x in -2..2. A small signed integer is one token here.
Length: the terms. Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxlm.data.tasks.base import Task, encoded_length


@dataclasses.dataclass(frozen=True)
class Polynomial(Task):
    """``x = 2 in 3 * x ** 2 + -1 * x ** 0`` -> ``1``."""

    @property
    def words(self) -> tuple[str, ...]:
        return (*"0123456789", "-1", "-2", "-3", "x", "=", "in", "*", "**", "+")

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        x = int(rng.integers(-2, 3))
        return self._spell(x, rng.integers(-3, 4, size=length).tolist(), rng.integers(4, size=length).tolist())

    def tokens_bound(self, length: int) -> int:
        return encoded_length(*self._spell(0, [0] * length, [0] * length))

    def _spell(self, x: int, coefficients: list[int], degrees: list[int]) -> tuple[list[str], list[str]]:
        terms = list(zip(coefficients, degrees, strict=True))
        text = f"x = {x} in " + " + ".join(f"{c} * x ** {d}" for c, d in terms)
        return text.split(), [str(sum(c * x**d for c, d in terms) % 10)]
