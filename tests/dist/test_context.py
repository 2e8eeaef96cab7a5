"""Rows split over devices: every mixer of matrix states equals itself on one device, and sends its states alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import dist
from jaxlm.core import registry
from jaxlm.core.config import make
from jaxlm.core.params import map_specs
from jaxlm.core.types import Context, Dims
from jaxlm.mixer.linear import Linear
from jaxlm.mixer.mlstm import Mlstm
from tests.dist.test_collectives import collectives
from tests.tiny import close, draw_params, mostly_slow

NAMES = [name for name in registry.methods("mixer") if issubclass(registry.get("mixer", name), (Linear, Mlstm))]
ROWS, LENGTH, WIDTH = 2, 32, 16
SEGMENTS = np.stack([[1] * 3 + [2] * 20 + [0] * 2 + [3] * 7, [0] * 9 + [1] * 23]).astype(np.int32)
FIELDS: dict[str, dict[str, Any]] = {"mamba2": {"head_dim": 8, "state": 6}}


def layer(name: str) -> tuple[Any, dict[str, Any], jax.Array]:
    fields = {"chunk": 4, **FIELDS.get(name, {"heads": 2})}
    mixer = make("mixer", {"name": name, "args": fields})
    x = np.random.default_rng(0).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)
    return mixer, draw_params(mixer.params(Dims(width=WIDTH))), jnp.asarray(x)


def outputs(mixer: Any, mesh: jax.sharding.Mesh | None, p: Any, x: jax.Array, segments: Any = None) -> jax.Array:
    ctx = Context(positions=jnp.arange(LENGTH)[None], segment_ids=segments)
    with dist.use_mesh(mesh):
        y = mixer(p, dist.constrain(x, ("batch", "length", None)), ctx)[0]
        return dist.constrain(y, ("batch", "length", None))


def last_bits(tree: Any) -> Any:
    """Every number moved by about its last bit, up or down."""
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: x * (1 + 6e-8 * draw.choice([-1, 1], x.shape).astype(np.float32)), tree)


def apart(a: Any, b: Any) -> float:
    """The largest difference of two trees, relative to each leaf's largest entry."""
    return max(
        float(jnp.abs(x - y).max() / jnp.abs(y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


@pytest.mark.parametrize("name", mostly_slow(NAMES, "linear_attention", "gla", "delta_net", "mamba2", "mlstm"))
def test_four_devices_give_what_one_gives(name):
    """Outputs, and gradients by parameters and input, through padding and documents that cross the pieces. To 1e-5, or
    to twice what a change of the inputs' last bits does: RWKV's gradients move by several times 1e-5."""
    mixer, p, x = layer(name)

    def run(mesh):
        def loss(p, x):
            y = outputs(mixer, mesh, p, x, jnp.asarray(SEGMENTS))
            return jnp.sin(y).sum(), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))

    one, four = run(None), run(dist.make_mesh(dist.Mesh(data=1, context=4), jax.devices()[:4]))
    (gradients, y), (moved, _) = one(p, x), one(*last_bits((p, x)))
    split_gradients, split_y = four(p, x)
    close(split_y, y)
    close(split_gradients, gradients, max(1e-5, 2 * apart(moved, gradients)))  # both are rounded


@pytest.mark.parametrize("name", NAMES)
def test_one_all_gather_a_layer(name):
    """Besides it, at most what a short convolution or a token shift reads of its neighbour."""
    mixer, p, x = layer(name)
    mesh = dist.make_mesh(dist.Mesh(data=1, context=4), jax.devices()[:4])
    specs = map_specs(lambda _, s: dist.sharding(mesh, s.axes, s.shape), mixer.params(Dims(width=WIDTH)))
    place = dist.sharding(mesh, ("batch", "length", None), x.shape)
    program = jax.jit(lambda p, x: outputs(mixer, mesh, p, x), in_shardings=(specs, place), out_shardings=place)
    kinds = [kind for kind, _ in collectives(program.lower(p, x))]
    assert kinds.count("all-gather") == 1
    assert set(kinds) <= {"all-gather", "collective-permute"}


def test_a_memory_of_xlstm_goes_from_piece_to_piece():
    """Its state is one of three arrays, and not linear: the first half of a row, and the second from what it left."""
    mixer, p, x = layer("mlstm")
    mesh = dist.make_mesh(dist.Mesh(data=1, context=4), jax.devices()[:4])

    def half(x, state, first):
        with dist.use_mesh(mesh):
            ctx = Context(positions=first + jnp.arange(LENGTH // 2)[None], segment_ids=None)
            return mixer(p, x, ctx, state)

    halves, state = [], mixer.init_state(Dims(width=WIDTH), ROWS, LENGTH, jnp.float32, None)
    for first in (0, LENGTH // 2):
        y, state = jax.jit(half)(x[:, first : first + LENGTH // 2], state, first)
        halves.append(y)
    close(jnp.concatenate(halves, 1), outputs(mixer, None, p, x))
