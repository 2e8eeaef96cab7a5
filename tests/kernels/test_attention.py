"""Attention by XLA and by the reference over the table of cases; the oracle itself against finite differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.kernels.cases import CASES, draw, oracle, run
from tests.kernels.table import check


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle(name: str, implementation: str) -> None:
    check(name, implementation)


def test_oracle_gradients_are_finite_differences() -> None:
    """The oracle's own gradients, along a random direction, against differences of its forward pass in float64."""
    name = "everything"
    drawn, rng = draw(name), np.random.default_rng(0)
    base, step = oracle(name, drawn), 1e-5
    finite = np.isfinite(base["lse"])

    def loss(shift: float, key: str, direction: np.ndarray) -> float:
        arrays = {**drawn.arrays, key: np.asarray(drawn.arrays[key], np.float64) + shift * direction}
        found = oracle(name, dataclasses.replace(drawn, arrays=arrays))
        lse = np.where(finite, found["lse"], 0.0)
        return float((found["out"] * np.asarray(drawn.dout)).sum() + (lse * np.asarray(drawn.dlse)).sum())

    for key in drawn.arrays:
        direction = rng.standard_normal(drawn.arrays[key].shape)
        slope = (loss(step, key, direction) - loss(-step, key, direction)) / (2 * step)
        assert abs(slope - (base[f"d{key}"] * direction).sum()) <= 1e-6 * max(1.0, abs(slope)), key


def test_second_evaluation_is_the_same() -> None:
    drawn = draw("everything")
    first, second = (run("everything", drawn, "xla") for _ in range(2))
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
