"""Mamba-3's recurrence: chunks against the formula, with padding, documents, states and extreme decays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.mamba3 import Memory, mamba3, turn
from jaxlm.ops.segments import rows_of
from tests.tiny import close, slow

BATCH, HEADS, WIDTH, DEPTH, PAIRS = 4, 2, 6, 3, 2
LENGTH = 19
SEGMENTS = np.asarray(
    [[1] * 19, [0] * 5 + [1] * 14, [1] * 6 + [0] * 4 + [1] * 9, [1] * 5 + [2] * 6 + [0] * 2 + [3] * 6], np.int32
)


def draw(length=LENGTH, batch=BATCH, seed=0, decay=0.5):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal((batch, length, HEADS, *shape)).astype(np.float32)
    dt = rng.uniform(0.1, 1.0, (batch, length, HEADS)).astype(np.float32)
    return normal(WIDTH), normal(WIDTH), normal(DEPTH), -decay * dt, dt, normal(), normal(PAIRS)


def draw_memory(batch=BATCH, seed=1):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal((batch, HEADS, *shape)).astype(np.float32)
    return Memory(np.abs(normal(PAIRS)), normal(WIDTH, DEPTH), normal(WIDTH), normal(DEPTH))


def formula(q, k, v, g, dt, trapezoid, angles, memory=None, segments=None):
    """One row after the other in float64, token by token."""
    out = np.zeros(v.shape)
    memories = []
    for b in range(len(q)):
        empty = Memory(np.zeros((HEADS, PAIRS)), np.zeros((HEADS, WIDTH, DEPTH)), np.zeros((HEADS, WIDTH)),
                       np.zeros((HEADS, DEPTH)))  # fmt: skip
        theta, state, last_k, last_v = empty if memory is None else (np.asarray(m[b], np.float64) for m in memory)
        before = 0
        for t in range(q.shape[1]):
            segment = 1 if segments is None else segments[b, t]
            if segment == 0:
                continue
            if before not in (0, segment):
                theta, state, last_k, last_v = empty
            before = segment
            theta = (theta + np.pi * np.tanh(angles[b, t]) * dt[b, t][:, None]) % (2 * np.pi)
            turned = []
            for x in (q[b, t], k[b, t]):
                z = (x[:, : 2 * PAIRS : 2] + 1j * x[:, 1 : 2 * PAIRS : 2]) * np.exp(1j * theta)
                pairs = np.stack((z.real, z.imag), -1).reshape(HEADS, -1)
                turned.append(np.concatenate((pairs, x[:, 2 * PAIRS :]), -1))
            own = 1 / (1 + np.exp(-trapezoid[b, t].astype(np.float64)))
            fade = np.exp(g[b, t].astype(np.float64))
            outer = lambda a, c: np.einsum("hk,hv->hkv", a, c)
            state = fade[:, None, None] * state + ((1 - own) * dt[b, t] * fade)[:, None, None] * outer(last_k, last_v)
            last_k, last_v = turned[1], v[b, t].astype(np.float64)
            state = state + (own * dt[b, t])[:, None, None] * outer(last_k, last_v)
            out[b, t] = np.einsum("hk,hkv->hv", turned[0], state)
        memories.append(Memory(theta, state, last_k, last_v))
    return out, jax.tree.map(lambda *x: np.stack(x), *memories)


@pytest.mark.parametrize(
    ("chunk", "implementation", "packed", "given"),
    [
        (7, "xla", True, False),
        (64, "xla", True, True),
        *slow((1, "xla", True, True), (7, "xla", False, True), (16, "xla", False, False)),
        *slow((1, "reference", True, True)),
    ],
)
def test_it_is_the_formula(chunk, implementation, packed, given):
    tokens, memory = draw(), draw_memory() if given else None
    segments = SEGMENTS if packed else None
    expected, last = formula(*tokens, memory, segments)
    rows = rows_of(jnp.asarray(SEGMENTS)) if packed else None
    out, found = jax.jit(
        lambda tokens, memory, rows: mamba3(
            *tokens, memory=memory, rows=rows, chunk=chunk, implementation=implementation
        )
    )(tokens, memory, rows)
    real = np.ones(SEGMENTS.shape, bool) if segments is None else SEGMENTS != 0
    close(np.asarray(out)[real], expected[real])
    close(found._replace(angle=np.sin(found.angle)), last._replace(angle=np.sin(last.angle)))


def test_gradients_are_the_reference():
    """Of every input and of the memory, through outputs and the memory after."""
    rows = rows_of(jnp.asarray(SEGMENTS))

    def loss(implementation):
        def total(tokens, memory):
            out, after = mamba3(*tokens, memory=memory, rows=rows, chunk=7, implementation=implementation)
            seen = jnp.where(rows.real[..., None, None], jnp.sin(out), 0).sum()
            return seen + sum(jnp.sin(x).sum() for x in after)

        return jax.jit(jax.grad(total, (0, 1)))

    arguments = draw(), draw_memory()
    fast, slow = loss("xla")(*arguments), loss("reference")(*arguments)
    close(fast, slow, 2e-5)
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(slow))


def test_two_halves_are_one():
    tokens, memory = draw(), draw_memory()
    whole = jax.jit(mamba3)(*tokens, memory=memory)
    first, between = jax.jit(mamba3)(*(x[:, :8] for x in tokens), memory=memory)
    second, last = jax.jit(mamba3)(*(x[:, 8:] for x in tokens), memory=between)
    close((jnp.concatenate((first, second), 1), last), whole)


@pytest.mark.parametrize("rate", [200.0, None])
def test_extreme_decays_are_finite(rate):
    q, k, v, g, dt, trapezoid, angles = draw(length=40, batch=1)
    rates = np.random.default_rng(2).choice([1e-7, 20.0, 200.0], g.shape) if rate is None else np.full(g.shape, rate)
    tokens = q, k, v, -rates.astype(np.float32), dt, trapezoid, angles
    close(jax.jit(lambda *x: mamba3(*x, chunk=16)[0])(*tokens), formula(*tokens)[0], 2e-5)
    gradients = jax.jit(jax.grad(lambda x: jnp.sin(mamba3(*x, chunk=16)[0]).sum()))(tokens)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_a_thousand_steps_do_not_drift():
    tokens = draw(length=1000, batch=1, decay=0.02)
    whole, last = jax.jit(mamba3)(*tokens)

    def step(memory, now):
        out, memory = mamba3(*(x[:, None] for x in now), memory=memory)
        return memory, out[:, 0]

    start = jax.tree.map(lambda x: jnp.zeros_like(x), last)
    memory, steps = jax.jit(lambda t: jax.lax.scan(step, start, [jnp.moveaxis(jnp.asarray(x), 1, 0) for x in t]))(
        tokens
    )
    close(jnp.moveaxis(steps, 0, 1), whole, 1e-3)
    close(memory.state, last.state, 1e-3)


def test_vmap():
    tokens = draw()
    double = jax.tree.map(lambda x: np.stack((x, x[::-1])), tokens)
    out = jax.jit(jax.vmap(lambda *x: mamba3(*x, chunk=7)[0]))(*double)
    one = jax.jit(lambda *x: mamba3(*x, chunk=7)[0])(*tokens)
    close(out, np.stack((one, one[::-1])))


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
    q, k, v, *rest = draw(length=4096, batch=1, decay=0.05)
    exact = jax.jit(mamba3)(q, k, v, *rest)[0]
    rough = jax.jit(mamba3)(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), *rest)[0]
    assert np.sqrt(np.mean((rough - exact) ** 2)) < 0.02 * np.sqrt(np.mean(exact**2))


def test_turns_keep_lengths_and_leave_the_rest():
    x, theta = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32), np.full((3, 2), 0.7, np.float32)
    y = np.asarray(turn(x, theta))
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(y[:, 4:], x[:, 4:])
