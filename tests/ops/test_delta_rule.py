"""The delta rule and RWKV-7's: against a loop in float64, by chunks of any size, with documents and states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.delta_rule import delta_rule
from jaxlm.ops.dplr import dplr
from jaxlm.ops.triangular import unit_lower_inverse
from tests.ops.recurrences import *  # noqa: F403
from tests.ops.recurrences import Op
from tests.tiny import close


def run(x, **options):
    return delta_rule(x["q"], x["k"], x["v"], x["beta"], x.get("log_decay"), **options)


def correct(state, x):
    state = np.exp(x.get("log_decay", 0.0) * np.ones(len(state)))[:, None] * state
    state = state + x["beta"] * np.outer(x["k"], x["v"] - x["k"] @ state)
    return x["q"] @ state, state


def run_dplr(x, **options):
    return dplr(x["q"], x["k"], x["v"], x["a"], x["b"], x["log_decay"], **options)


def turn(state, x):
    state = (np.diag(np.exp(x["log_decay"])) + np.outer(x["b"], x["a"])) @ state + np.outer(x["k"], x["v"])
    return x["q"] @ state, state


DELTA = {"q": "BLGK", "k": "BLGK", "v": "BLHV", "beta": "BLH"}
OPS = [
    Op("delta", run, correct, DELTA),
    Op("gated", run, correct, {**DELTA, "log_decay": "BLH"}),
    Op("kda", run, correct, {**DELTA, "log_decay": "BLHK"}),
    Op("rwkv7", run_dplr, turn, {"q": "BLGK", "k": "BLGK", "v": "BLHV", "a": "BLHK", "b": "BLHK", "log_decay": "BLHK"}),
]


@pytest.fixture(scope="module", params=OPS, ids=lambda op: op.name)
def op(request):
    return request.param


@pytest.mark.parametrize("size", [1, 7, 33])
def test_inverse_of_unit_lower_triangles(size):
    random = np.random.default_rng(0)
    below, weights = (random.standard_normal((2, size, size)) * size**-0.5 for _ in range(2))

    def total(below):
        inverse = unit_lower_inverse(jnp.tril(below, -1))
        return (inverse * jnp.asarray(weights, jnp.float32)).sum(), inverse

    slope, inverse = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(below, jnp.float32))
    exact = np.linalg.inv(np.eye(size) + np.tril(below, -1))
    close((inverse, slope), (exact, -np.tril(exact.mT @ weights @ exact.mT, -1)))
