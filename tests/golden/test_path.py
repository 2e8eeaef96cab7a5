"""Golden vectors of PaTH attention: logits of a float64 oracle, outputs with and without the reference's gate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.path import Keys, Logits, Turns, path_attention, reference
from tests.golden.test_positions import close, files

BLOCKS = [1, 4, 7, 64]


def run(data, block, v=None, gate=None):
    """Outputs by blocks, or token by token for block 0; the file holds scaled products of its head width."""
    q, k, w, beta = (jnp.asarray(data[name]) for name in ("q", "k", "w", "beta"))
    sums = None if gate is None else jnp.cumsum(data["log_f"], 1)
    new = Keys(k, jnp.asarray(data["v"] if v is None else v), jnp.ones(q.shape[:2], jnp.int32), sums)
    logits = Logits(q.shape[-1] ** -0.5, gate_first=gate == "products")

    def call(q, new, turns):
        return reference(q, new, turns, logits) if not block else path_attention(q, new, turns, logits, block=block)

    return jax.jit(call)(q, new, Turns(w, beta))[0]


@pytest.mark.parametrize("block", [0, *BLOCKS])
def test_outputs(golden, block):
    for data in files(golden, "path_attention"):
        close(run(data, block), data["out"])
        close(run(data, block, gate="products"), data["out_with_gate_as_reference"])


@pytest.mark.parametrize("block", [0, *BLOCKS])
def test_logits(golden, block):
    """Values that are unit vectors read out the weights: the softmax of the file's logits."""
    for data in files(golden, "path_attention"):
        logits = data["logits_unscaled"].astype(np.float64) / np.sqrt(data["q"].shape[-1])
        weights = np.exp(np.where(np.isnan(logits), -np.inf, logits))
        expected = (weights / weights.sum(-1, keepdims=True)).transpose(0, 2, 1, 3)
        batch, length, groups = data["k"].shape[:3]
        units = np.broadcast_to(np.eye(length, dtype=np.float32)[:, None], (batch, length, groups, length))
        close(run(data, block, v=units), expected)


def test_the_gate_after_the_scale_is_forgetting_attention(golden):
    """With keys that nothing turns it must be the softmax of q.k / sqrt(D) + F_i - F_j, which another file records."""
    for data in files(golden, "forgetting_attention"):
        heads = data["k"].shape[2]
        still = {"w": np.zeros_like(data["k"]), "beta": np.ones((*data["k"].shape[:2], heads), np.float32)}
        close(run({**data, **still}, 4, gate="logits"), data["out"])
