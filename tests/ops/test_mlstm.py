"""The memory of xLSTM by chunks against its recurrence, and that against sums without a stabiliser, in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.ops.mlstm import Memory, mlstm
from jaxlm.ops.segments import rows_of
from tests.tiny import close, slow

BATCH, LENGTH, HEADS, WIDTH, DEPTH = 3, 29, 2, 3, 4
CHUNKS = [7, 64, *slow((1,), (16,))]
SEGMENTS = np.asarray(
    [[0] * 6 + [1] * 23, [1] * 8 + [0] * 5 + [1] * 9 + [0] * 7, [1] * 5 + [2] * 9 + [0] * 3 + [3] * 1 + [4] * 11],
    np.int32,
)
BEFORE = np.asarray([0, 2, 1], np.int32)
NAMES = ("q", "k", "v", "i", "f")


def draw(length: int = LENGTH, batch: int = BATCH, spread: float = 2.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {
        "q": normal(batch, length, HEADS, WIDTH),
        "k": normal(batch, length, HEADS, WIDTH),
        "v": normal(batch, length, HEADS, DEPTH),
        "i": spread * normal(batch, length, HEADS),
        "f": -np.exp(normal(batch, length, HEADS)),
        "c": normal(batch, HEADS, WIDTH, DEPTH),
        "n": normal(batch, HEADS, WIDTH),
        "m": normal(batch, HEADS),
    }


def run(x, rows=None, **form):
    state = Memory(x["c"], x["n"], x["m"]) if "c" in x else None
    return mlstm(*(x[name] for name in NAMES), rows=rows, state=state, **form)


def jitted(**form):
    return jax.jit(lambda x, rows=None: run(x, rows, **form))


def oracle(x: dict, eps: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """h, and what the last state stands for: exp(m) C; the gates as they are, without m but in the place of eps."""
    x = {name: np.asarray(value, np.float64) for name, value in x.items()}
    h = np.zeros(x["v"].shape)
    c, n, m = (x[name] for name in "cnm")
    c, n = np.exp(m)[..., None, None] * c, np.exp(m)[..., None] * n
    for t in range(h.shape[1]):
        q, k, v, gate, fade = x["q"][:, t], x["k"][:, t], x["v"][:, t], np.exp(x["i"][:, t]), np.exp(x["f"][:, t])
        m = np.maximum(np.log(fade) + m, np.log(gate))
        c = fade[..., None, None] * c + gate[..., None, None] * k[..., :, None] * v[..., None, :]
        n = fade[..., None] * n + gate[..., None] * k
        size = np.maximum(np.abs((n * q).sum(-1)), 1) + eps * np.exp(m)
        h[:, t] = (q[..., None] * c).sum(-2) / size[..., None]
    return h, c


@pytest.mark.parametrize("form", [{"implementation": "reference"}, {"chunk": 7}], ids=str)
def test_it_is_the_memory_without_a_stabiliser(form):
    x = draw()
    h, memory = jitted(**form)(x)
    wanted, c = oracle(x)
    close(h, wanted, 2e-5)
    close(np.exp(memory.m)[..., None, None] * memory.c, c, 2e-5)


def values_and_gradients(x, rows, **form):
    real = 1.0 if rows is None else np.asarray(rows.real)[..., None, None]

    def total(x):
        h, memory = run(x, rows, **form)
        h = jnp.where(real, h, 0)
        return jnp.sin(h).sum() + sum(jnp.sin(part).sum() for part in memory), (h, memory)

    return jax.jit(jax.grad(total, has_aux=True))(x)


@functools.cache
def references(packed):
    rows = rows_of(jnp.asarray(SEGMENTS), jnp.asarray(BEFORE)) if packed else None
    x = draw()
    return x, rows, values_and_gradients(x, rows, implementation="reference")


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("packed", [True, *slow((False,))], ids=["packed", "plain"])
def test_chunks_are_the_reference(packed, chunk):
    x, rows, wanted = references(packed)
    close(values_and_gradients(x, rows, chunk=chunk), wanted, 2e-5)


def test_without_a_state_it_begins_with_zeros():
    x = draw()
    zeros = {**x, **{name: np.zeros_like(x[name]) for name in "cnm"}}
    none = {name: x[name] for name in NAMES}
    close(jitted(chunk=7)(none), jitted(implementation="reference")(zeros), 2e-5)


def test_documents_are_separate_runs():
    """Packed rows, and rows with padding, are their documents run one by one from zeros."""
    x, slow = {name: value for name, value in draw().items() if name in NAMES}, jitted(implementation="reference")
    packed = np.asarray(jitted(chunk=7)(x, rows_of(jnp.asarray(SEGMENTS)))[0])
    for row, segments in enumerate(SEGMENTS):
        for segment in set(segments.tolist()) - {0}:
            at = np.flatnonzero(segments == segment)
            alone = {name: value[row : row + 1, at] for name, value in x.items()}
            close(packed[row, at], np.asarray(slow(alone)[0])[0], 2e-5)


@pytest.mark.parametrize("chunk", [64, *slow((16,))])
def test_gates_of_all_sizes_are_finite(chunk):
    """Input gates from exp(-150) to exp(150), forget gates from 1 - 1e-7 to exp(-200)."""
    x = draw(length=64, spread=60.0)
    x |= {name: np.abs(x[name]) for name in "qkn"}  # or some q . n would be the rounding of what cancels in it
    x["f"] = -np.random.default_rng(1).choice([1e-7, 1e-3, 20.0, 200.0], x["f"].shape)
    x["i"][:, 0], x["f"][:, 0] = x["m"], -1e-7  # so that the first state counts, and m has a gradient
    with jax.enable_x64():
        x64 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), x)
        wanted = jax.tree.map(np.asarray, values_and_gradients(x64, None, implementation="reference"))
    x["f"] = x["f"].astype(np.float32)
    # Each m is rounded at float32's 1e-7 of 150, and with it what a weight is compared to.
    close(values_and_gradients(x, None, chunk=chunk), wanted, 1e-4)


def test_single_steps_are_one_pass():
    x = draw(length=200, batch=1)
    whole, last = jitted()(x)

    def step(state, now):
        h, state = mlstm(*(a[:, None] for a in now), state=state)
        return state, h[:, 0]

    tokens = tuple(jnp.moveaxis(jnp.asarray(x[name]), 1, 0) for name in NAMES)
    start = Memory(*(jnp.asarray(x[name]) for name in "cnm"))
    state, h = jax.jit(lambda state, tokens: jax.lax.scan(step, state, tokens))(start, tokens)
    close(jnp.moveaxis(h, 0, 1), whole, 1e-4)
    close(state, last, 1e-4)


def test_vmap():
    x = {name: np.concatenate((value, value[:1])) for name, value in draw().items()}
    parts = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), x)
    halves = jax.jit(jax.vmap(lambda x: run(x, chunk=16)))(parts)
    close(jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), halves), jitted(chunk=16)(x))


def test_an_unknown_implementation():
    with pytest.raises(ConfigError, match="mlstm: implementation"):
        run(draw(), implementation="cuda")
