"""The TPU kernels over the table of cases, in Pallas' interpreter."""

from __future__ import annotations

import pytest

from tests.kernels.cases import CASES
from tests.kernels.table import check


@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle(name: str) -> None:
    check(name, "tpu")
