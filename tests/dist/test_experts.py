"""Experts spread over devices compute what one device computes, and each device holds and runs its own only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxlm import dist
from jaxlm.core.params import flatten, map_specs
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.mixer.attention import Attention
from jaxlm.model.decoder import Decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.train.step import Trainer
from tests.dist.runs import OPTIMIZER, STEPS, VOCABULARY, assert_close, batch, mesh_of, whole

GLU = {"name": "glu", "args": {"hidden": 8, "bias": True}}


def trainer(mesh: jax.sharding.Mesh | None, experts: int, capacity: float) -> Trainer:
    ffn = Moe(experts=experts, expert=GLU, shared=GLU, router=Router(top_k=2), capacity=capacity, balance=0.1)
    block = Block(mixer=Attention(heads=4), ffn=ffn)
    spec = ModelSpec(vocab_size=VOCABULARY, width=32, layers=(Group((block,), 2),))
    return Trainer(Decoder(spec), NextToken(), OPTIMIZER, STEPS, mesh=mesh)


def step(mesh: jax.sharding.Mesh | None, experts: int, capacity: float):
    """Metrics of one training step on packed rows, and Adam's first moment, which is the gradient's direction."""
    train, rng = trainer(mesh, experts, capacity), np.random.default_rng(0)
    params = map_specs(lambda _, spec: rng.normal(0, 0.2, spec.full_shape).astype(np.float32), train.specs)
    state, metrics = jax.jit(train.step)(train.init(params), batch(mesh, 0))
    return {name: float(value) for name, value in metrics.items()}, state


@pytest.mark.parametrize(
    "experts, capacity",
    [
        pytest.param(8, 0.0, id="sorted", marks=pytest.mark.slow),
        pytest.param(8, 0.6, id="buffered"),
        pytest.param(6, 0.0, id="undivided", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_that_of_one_device(experts, capacity):
    want, alone = step(None, experts, capacity)
    found, spread = step(mesh_of("2x1x4"), experts, capacity)
    assert found == pytest.approx(want, rel=1e-5) and ("moe_dropped" in want) == bool(capacity)
    assert_close(whole(spread.optimizer.inner[0].mu), whole(alone.optimizer.inner[0].mu), 2e-5)
    kernel = dict(flatten(spread.params))["group_0/block_0/ffn/experts/in"]
    assert kernel.sharding.spec == (
        PartitionSpec(None, "tensor") if experts == 8 else PartitionSpec(None, None, None, "tensor")
    )


def test_pieces_of_arguments():
    """Leading dimensions are split as their names say; what has no name, or is not divided, every device has whole."""
    mesh = mesh_of("2x1x4")
    x, w = jnp.arange(24.0).reshape(4, 6), {"a": jnp.arange(8.0), "b": jnp.ones((8, 3))}

    def local(x, w):
        return x[None] + w["a"].sum() * w["b"].sum()

    def spread(x, w):
        with dist.use_mesh(mesh):
            axes = (("batch", None), ("expert",))
            return dist.per_device(local, (x, w), axes, ("expert", "batch", None))

    out = jax.jit(spread)(x, w)
    assert out.shape == (4, 4, 6)  # one part of each device of the expert axis
    for i, part in enumerate(out):
        np.testing.assert_array_equal(part, x + (4 * i + 1) * 6)
    odd = {name: array[:6] for name, array in w.items()}
    np.testing.assert_array_equal(jax.jit(spread)(x[:3], odd), local(x[:3], odd))
    np.testing.assert_array_equal(dist.per_device(local, (x, w), (("batch",), ("expert",)), ()), local(x, w))
