"""The TPU kernels over the table of cases, in Pallas' interpreter."""

from __future__ import annotations

import pytest

from tests.kernels.cases import CASES
from tests.kernels.table import check
from tests.tiny import mostly_slow

QUICK = (  # masks and arguments of each kind; the whole table is run for XLA's, with the same mathematics
    "causal",
    "causal, uneven blocks",
    "fewer queries than keys",
    "more keys, not causal",
    "grouped",
    "wide values",
    "width 64",
    "sinks or window",
    "prefix",
    "globals",
    "static documents",
    "anchor",
    "block lists by row and head",
    "lists of other blocks",
    "diagonals by head",
    "masks by head",
    "traced lists by head",
    "traced documents",
    "packed, grouped, window",
    "packed keys of a cache",
    "positions and documents",
    "trainable bias, grouped, packed",
    "soft cap",
    "sink logits",
    "rows without a key",
    "everything",
    "bfloat16, everything",
)


@pytest.mark.parametrize("name", mostly_slow(CASES, *QUICK))
def test_equals_the_oracle(name: str) -> None:
    check(name, "tpu")
