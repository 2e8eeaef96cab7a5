"""LASP-2: a recurrence over pieces of a row equals the whole, and sends one all-gather whatever the length."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import dist
from jaxlm.ops.scalar_decay import scalar_decay
from jaxlm.ops.segments import rows_of
from tests.dist.test_collectives import collectives
from tests.tiny import close, slow

BATCH, GROUPS, HEADS, KEYS, VALUES = 2, 2, 4, 3, 5

# (the recurrence, whether its decay is a diagonal, names of its further arguments)
OPS = {
    "linear attention": (scalar_decay, True, []),
    "scalar decay": (scalar_decay, True, ["decay"]),
    "retention": (scalar_decay, True, ["head decay"]),
    "scalar decay, in general": (scalar_decay, False, ["decay"]),
}


def inputs(names: list[str], length: int = 16):
    draw = np.random.default_rng(0).standard_normal
    array = lambda *shape: jnp.asarray(draw(shape), jnp.float32)
    others = {
        "decay": -jnp.exp(array(BATCH, length, HEADS)),
        "head decay": -jnp.exp(array(HEADS)),
        "channel decay": -jnp.exp(array(BATCH, length, HEADS, KEYS)),
        "beta": jax.nn.sigmoid(array(BATCH, length, HEADS)),
    }
    q, k = array(BATCH, length, GROUPS, KEYS), array(BATCH, length, GROUPS, KEYS)
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    v, state = array(BATCH, length, HEADS, VALUES), array(BATCH, HEADS, KEYS, VALUES)
    return (q, k, v, *(others[name] for name in names)), state


SEGMENTS = np.asarray([[1] * 3 + [2] * 7 + [0, 0, 3, 3, 3, 3], [0] * 5 + [1] * 11], np.int32)


# Every op by 8 devices, and every way of cutting with the op that has a decay.
FEW = [*((name, 8, True) for name in OPS), ("scalar decay", 2, True), ("scalar decay", 4, False)]
REST = [(name, *way) for name in OPS if name != "scalar decay" for way in ((2, True), (4, False))]


@pytest.mark.parametrize(("name", "pieces", "packed"), [*FEW, *slow(*REST)])
def test_pieces_on_devices_are_the_whole(name, pieces, packed):
    """Outputs, final state and all gradients, through documents and padding, from a state that is not zero."""
    op, diagonal, names = OPS[name]
    tokens, state = inputs(names)
    rows = rows_of(jnp.asarray(SEGMENTS)) if packed else None
    real = jnp.asarray(SEGMENTS != 0)[..., None, None] if packed else 1.0

    def loss(mesh, tokens, state):
        with dist.use_mesh(mesh):
            out, final = dist.lasp(op, *tokens, rows=rows, state=state, diagonal=diagonal)
        out = out * real
        return jnp.sin(out).sum() + jnp.sin(final).sum(), (out, final)

    mesh = dist.make_mesh(dist.Mesh(data=1, context=pieces), jax.devices()[:pieces])
    run = lambda mesh: jax.jit(jax.grad(functools.partial(loss, mesh), (0, 1), has_aux=True))(tokens, state)
    close(run(mesh), run(None))


@pytest.mark.parametrize("pieces", [8, *slow((2,), (4,))])
@pytest.mark.parametrize("name", OPS)
def test_one_all_gather_whatever_the_length(name, pieces):
    op, diagonal, names = OPS[name]
    mesh = dist.make_mesh(dist.Mesh(data=1, context=pieces), jax.devices()[:pieces])

    def sent(length: int):
        tokens, _ = inputs(names, length)

        def run(tokens):
            with dist.use_mesh(mesh):
                return dist.lasp(op, *tokens, rows=None, state=None, diagonal=diagonal)[0]

        axes = [("batch", "length") if x.ndim > 1 else (None,) for x in tokens]
        places = tuple(
            dist.sharding(mesh, (*a, *(None,) * (x.ndim - len(a))), x.shape) for a, x in zip(axes, tokens, strict=True)
        )
        return collectives(jax.jit(run, in_shardings=(places,)).lower(tokens))

    short, long = sent(16), sent(64)
    assert [kind for kind, _ in short] == ["all-gather"]
    assert short == long


def test_rows_that_pieces_do_not_divide_stay_whole():
    tokens, state = inputs(["decay"], length=9)
    mesh = dist.make_mesh(dist.Mesh(data=1, context=8))
    whole = scalar_decay(*tokens, state=state)
    with dist.use_mesh(mesh):
        close(dist.lasp(scalar_decay, *tokens, rows=None, state=state, diagonal=True), whole)
