"""The Triton-style kernels over the table of cases, in Pallas' interpreter."""

from __future__ import annotations

import pytest

from tests.kernels.cases import CASES
from tests.kernels.table import check
from tests.tiny import mostly_slow

QUICK = (  # each kind once; the whole table is run for XLA's, with the same mathematics
    "causal, odd",
    "fewer queries than keys",
    "width 64",
    "globals",
    "traced lists by head",
    "packed, grouped, window",
    "positions and documents",
    "trainable bias, grouped, packed",
    "sink logits",
    "rows without a key",
    "everything",
    "bfloat16, everything",
)


@pytest.mark.parametrize("name", mostly_slow(CASES, *QUICK))
def test_equals_the_oracle(name: str) -> None:
    check(name, "triton")
