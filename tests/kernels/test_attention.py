"""Every attention implementation against the float64 oracle, in value and all gradients, over one table of cases.

Kernels run in Pallas' interpreter. What an implementation refuses is listed with its reason; anything else must pass.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from jaxlm.ops.attention import supports
from pallas_kernels.block_sparse_attention.call import aimed_at
from tests.kernels.cases import CASES, draw, error, oracle, run

INTERPRETED = ("tpu", "triton")

# What an implementation may refuse in the table: (implementation, case), and words of the reason.
REFUSED: dict[tuple[str, str], str] = {
    ("tpu", "float16"): "float16",
    **{(name, "diagonals by head"): "tables" for name in INTERPRETED},
}


def place(implementation: str):
    return aimed_at(interpret=True) if implementation in INTERPRETED else contextlib.nullcontext()


@pytest.mark.parametrize("implementation", ["xla", "reference", *INTERPRETED])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle(name: str, implementation: str) -> None:
    case, drawn = CASES[name], draw(name)
    with place(implementation):
        if (implementation, name) in REFUSED:
            shapes = (drawn.arrays[x] for x in "qkv")
            reason = supports(implementation, *shapes, mask=drawn.mask, block_sizes=case.blocks)
            assert reason and REFUSED[implementation, name] in reason
            return
        got = run(name, drawn, implementation)
    want = oracle(name, drawn)
    assert got.keys() == want.keys()
    for key, value in want.items():
        bound = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3}[case.dtype]
        array = drawn.arrays.get(key[1:]) if key.startswith("d") else None
        assert array is None or got[key].dtype == array.dtype
        assert error(got[key], value) <= bound, key


def test_oracle_gradients_are_finite_differences() -> None:
    """The oracle's own gradients, along a random direction, against differences of its forward pass in float64."""
    name = "everything"
    drawn, rng = draw(name), np.random.default_rng(0)
    base, step = oracle(name, drawn), 1e-5
    finite = np.isfinite(base["lse"])

    def loss(shift: float, key: str, direction: np.ndarray) -> float:
        import dataclasses

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
