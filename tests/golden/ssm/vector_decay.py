"""Vector decay: GLA and RWKV-6."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.vector_decay import vector_decay
from tests.golden.ssm.data import check_values_and_gradients, files
from tests.tiny import slow

ways_of_vectors = pytest.mark.parametrize(
    ("chunk", "implementation"), [(7, "xla"), (64, "xla"), *slow((1, "xla"), (16, "xla"), (64, "reference"))]
)


@ways_of_vectors
def test_gla(golden, chunk, implementation):
    for data in files(golden, "gla_recurrent"):

        def run(x, data=data):
            q = x["q"] * np.float32(data["in_q"].shape[-1] ** -0.5)
            o, state = vector_decay(
                q, x["k"], x["v"], x["gk"], state=x["initial_state"], chunk=chunk, implementation=implementation
            )
            return {"o": o, "final_state": state}

        check_values_and_gradients(data, run, ["q", "k", "v", "gk", "initial_state"])


@ways_of_vectors
def test_rwkv6(golden, chunk, implementation):
    for data in files(golden, "rwkv6_recurrent"):

        def run(x, data=data):
            q, k, v, w = (jnp.swapaxes(x[name], 1, 2) for name in "qkvw")
            o, state = vector_decay(
                q * np.float32(q.shape[-1] ** -0.5),
                k,
                v,
                w,
                bonus=x["u"],
                state=x["initial_state"],
                chunk=chunk,
                implementation=implementation,
            )
            return {"o": jnp.swapaxes(o, 1, 2), "final_state": state}

        check_values_and_gradients(data, run, ["q", "k", "v", "w", "u", "initial_state"])
