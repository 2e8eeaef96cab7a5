"""Scalar decay: linear attention, retention, simple GLA, SSD."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.ops.scalar_decay import scalar_decay
from tests.golden.ssm.data import check_values_and_gradients, files

CHUNKS = [1, 7, 16, 64]


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_simple_gla(golden, chunk, implementation):
    for data in files(golden, "simple_gla_recurrent"):

        def run(x, data=data):
            q = x["q"] * np.float32(data["in_q"].shape[-1] ** -0.5)
            o, state = scalar_decay(
                q, x["k"], x["v"], x["g"], state=x["initial_state"], chunk=chunk, implementation=implementation
            )
            return {"o": o, "final_state": state}

        check_values_and_gradients(data, run, ["q", "k", "v", "g", "initial_state"])
