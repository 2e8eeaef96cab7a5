"""Training on 8 devices is training on one: losses, gradients, state, for every mesh and every position encoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxlm import dist
from jaxlm.core import registry
from jaxlm.core.params import ParamSpec, flatten, map_specs
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.model.layers import dropout
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.train.step import Trainer
from tests.dist.runs import OPTIMIZER, STEPS, VOCABULARY, assert_close, batch, mesh_of, run, trainer, whole
from tests.tiny import mostly_slow

# data x fsdp x tensor, microbatches; the last takes 4 of the 8 devices.
MESHES = [("8x1x1", 1), ("1x8x1", 1), ("2x2x2", 2), ("1x2x4", 1), ("1x1x4", 4)]


@pytest.fixture(
    scope="module",
    params=[pytest.param(p, marks=() if p[0] in ("8x1x1", "2x2x2") else pytest.mark.slow) for p in MESHES],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def sharded(request, first):
    """(mesh, run on it): half of the batches packed and half padded, one to four microbatches."""
    train = trainer(mesh_of(request.param[0]), accumulate=request.param[1])
    return train, run(train, jax.device_put(first, train.shardings()))


def test_losses_of_twenty_steps_are_those_of_one_device(sharded, alone):
    np.testing.assert_allclose(sharded[1].losses, alone.losses, rtol=1e-5)
    assert alone.losses[-2:].mean() < alone.losses[:2].mean()  # it does learn


def test_gradients_of_the_first_step_are_those_of_one_device(sharded, alone):
    assert_close(sharded[1].gradient, alone.gradient)


def test_the_state_keeps_its_place(sharded):
    """After 20 steps as before the first: moments and averages beside their parameters."""
    train, result = sharded
    mesh, state = train.mesh, result.state
    assert jax.tree.all(jax.tree.map(lambda x, at: x.sharding.is_equivalent_to(at, x.ndim), state, train.shardings()))
    adam = state.optimizer.inner[0]
    for path, spec in flatten(train.specs):
        for tree in (state.params, adam.mu, adam.nu, state.optimizer.ema):
            assert dict(flatten(tree))[path].sharding == dist.sharding(mesh, spec.full_axes, spec.full_shape), path


def test_memory_per_device_falls_with_its_shards(sharded):
    """Every matrix of this model divides by fsdp x tensor, and so do its moments and its average."""
    train, result = sharded
    matrices = [path for path, spec in flatten(train.specs) if any(spec.axes)]
    assert len(matrices) == 6
    adam = result.state.optimizer.inner[0]
    for tree in (result.state.params, adam.mu, adam.nu, result.state.optimizer.ema):
        for x in (dict(flatten(tree))[path] for path in matrices):
            held = {shard.data.nbytes for shard in x.addressable_shards}
            assert held == {x.nbytes // (train.mesh.shape["fsdp"] * train.mesh.shape["tensor"])}


def test_initial_values_do_not_depend_on_the_mesh(first):
    jax.tree.map(np.testing.assert_array_equal, whole(trainer(mesh_of("2x2x2")).init()), whole(first))


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = mesh_of("1x2x4")
    assert dist.sharding(mesh, ("embed", "heads", None), (32, 8, 3)).spec == PartitionSpec("fsdp", "tensor")
    assert dist.sharding(mesh, ("embed", "heads", None), (31, 6, 3)).spec == PartitionSpec()
    assert dist.sharding(mesh_of("2x4x1"), ("batch", None), (12, 4)).spec == PartitionSpec()
    specs = {"odd": ParamSpec((5, 8), ("vocab", "embed"), stack=3)}
    assert dist.param_shardings(mesh, specs)["odd"].spec == PartitionSpec(None, None, "fsdp")


def test_dropout_draws_what_one_device_draws():
    mesh = mesh_of("2x2x2")
    x = jnp.ones((8, 4, 16))

    def dropped(x):
        with dist.use_mesh(mesh):
            return dropout(dist.constrain(x, ("batch", None, "mlp")), 0.5, jax.random.key(0), train=True)

    expected = dropout(x, 0.5, jax.random.key(0), train=True)
    np.testing.assert_array_equal(jax.jit(dropped)(x), expected)


@pytest.mark.parametrize(
    "position", mostly_slow(registry.methods("position"), "none", "rotary", "alibi", "t5_bias", "fire", "forgetting")
)
def test_every_position_encoding_gives_what_one_device_gives(position):
    block = Block(mixer=Attention(heads=4, position=position), ffn=None)
    model = Decoder(ModelSpec(vocab_size=VOCABULARY, width=32, layers=(Group((block,)),), remat="none"))
    results = []
    for mesh in (None, mesh_of("2x2x2")):
        train = Trainer(model, NextToken(), OPTIMIZER, STEPS, mesh=mesh)
        rng = np.random.default_rng(0)
        params = map_specs(lambda _, spec, r=rng: r.normal(0, 0.2, spec.full_shape).astype(np.float32), train.specs)

        def loss(params, batch, train=train):
            total, weight = train.evaluate(params, batch)["loss"]
            return total / weight

        placed = params if mesh is None else jax.device_put(params, train.shardings().params)
        value, gradient = jax.jit(jax.value_and_grad(loss))(placed, batch(mesh, 0))
        results.append((float(value), whole(gradient)))
    (want, want_gradient), (found, found_gradient) = results
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert_close(found_gradient, want_gradient)
