"""Diagonal scans against a loop in float64: chunks of any size, documents, states, extreme decays; and wkv on top."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.ops.diagonal_scan import diagonal_scan
from jaxlm.ops.segments import rows_of
from jaxlm.ops.wkv import Sums, wkv
from tests.ops.recurrences import SEGMENTS
from tests.tiny import close, slow

REAL, WIDTH = SEGMENTS != 0, 3


def draw(kind: str, length: int = SEGMENTS.shape[1], seed: int = 0):
    """(log decay, x, state): ``complex`` per token, ``real`` per token, or ``constant``."""
    random = np.random.default_rng(seed)
    batch, normal = len(SEGMENTS), random.standard_normal
    shape = (WIDTH,) if kind == "constant" else (batch, length, WIDTH)
    g, x, state = -np.exp(normal(shape) - 1), normal((batch, length, WIDTH)), normal((batch, WIDTH))
    if kind != "real":
        g, x, state = g + 1j * normal(shape), x + 1j * normal(x.shape), state + 1j * normal(state.shape)
    narrow = np.complex64 if kind != "real" else np.float32
    return tuple(jnp.asarray(a, narrow) for a in (g, x, state))


def oracle(g, x, state, segments=SEGMENTS):
    kind = np.complex128 if np.iscomplexobj(x) else np.float64
    x, state = np.asarray(x, kind), np.array(state, kind)
    g = np.broadcast_to(np.asarray(g, kind), x.shape)
    h = np.zeros_like(x)
    for row in range(len(x)):
        last = 0
        for i, segment in enumerate(segments[row]):
            if segment:
                if last not in (0, segment):
                    state[row] = 0
                last = segment
                state[row] = np.exp(g[row, i]) * state[row] + x[row, i]
            h[row, i] = state[row]
    return h, state


def parts(tree):
    """Complex arrays as two real ones, which `close` compares."""
    split = lambda x: (np.real(x), np.imag(x)) if np.iscomplexobj(x) else np.asarray(x)
    return jax.tree.map(split, tree)


def values_and_slopes(arrays, rows, **options):
    def loss(arrays):
        h, last = diagonal_scan(arrays[0], arrays[1], state=arrays[2], rows=rows, **options)
        total = jnp.sin(jnp.real(h)).sum() + jnp.cos(jnp.imag(h)).sum() + jnp.sin(jnp.abs(last)).sum()
        return total, (h, last)

    slope, values = jax.jit(jax.grad(loss, has_aux=True))(arrays)
    return parts(values), parts(slope)


@functools.cache
def references(kind):
    arrays = draw(kind)
    values, slope = values_and_slopes(arrays, rows_of(jnp.asarray(SEGMENTS)), implementation="reference")
    close(values, parts(oracle(*arrays)))
    return arrays, values, slope


@pytest.mark.parametrize("chunk", [None, 7, 64, *slow((1,), (16,))])
@pytest.mark.parametrize("kind", ["real", "complex", *slow(("constant",))])
def test_chunks_of_any_size(kind, chunk):
    """None for what a caller gets who does not choose."""
    arrays, values, slope = references(kind)
    options = {"chunk": chunk, "implementation": "xla"} if chunk else {}
    found, gradient = values_and_slopes(arrays, rows_of(jnp.asarray(SEGMENTS)), **options)
    close(found, values)
    close(gradient, slope, 2e-5)


def test_float64():
    with jax.enable_x64(True):
        g, x, state = (jnp.asarray(np.asarray(a), jnp.complex128) for a in draw("complex"))
        rows = rows_of(jnp.asarray(SEGMENTS))
        for implementation in ("xla", "reference"):
            run = functools.partial(diagonal_scan, rows=rows, chunk=7, implementation=implementation)
            close(parts(jax.jit(run)(g, x, state=state)), parts(oracle(g, x, state)), 1e-13)


def test_neither_rows_nor_a_state_and_two_halves_and_vmap():
    g, x, _ = draw("real")
    expected = oracle(g, x, np.zeros((len(x), WIDTH)), np.ones_like(SEGMENTS))
    options = {"chunk": 8, "implementation": "xla"}
    close(jax.jit(lambda g, x: diagonal_scan(g, x, **options))(g, x), expected)

    def halves(g, x):
        first, middle = diagonal_scan(g[:, :13], x[:, :13], **options)
        second, last = diagonal_scan(g[:, 13:], x[:, 13:], state=middle, **options)
        return jnp.concatenate((first, second), 1), last

    close(jax.jit(halves)(g, x), expected)
    close(jax.jit(jax.vmap(lambda g, x: diagonal_scan(g[None], x[None], **options)[0][0]))(g, x), expected[0])


def test_decays_of_all_sizes_side_by_side():
    _, x, state = draw("real")
    choice = np.random.default_rng(3).choice([-1e-7, -1e-3, -20.0, -200.0], x.shape, p=[0.5, 0.3, 0.1, 0.1])
    arrays = (jnp.asarray(choice, jnp.float32), x, state)
    rows = rows_of(jnp.asarray(SEGMENTS))
    found, slope = values_and_slopes(arrays, rows, implementation="xla")
    close(found, oracle(*arrays))
    close(slope, values_and_slopes(arrays, rows, implementation="reference")[1], 2e-5)


def test_bfloat16_inputs_and_a_thousand_steps():
    """The state is float32 whatever the inputs are; steps and chunks do not part."""
    random = np.random.default_rng(0)
    g = jnp.asarray(-np.exp(random.standard_normal((1, 4096, 8)) - 2), jnp.float32)
    x = jnp.asarray(random.standard_normal(g.shape), jnp.bfloat16)
    by_chunks = jax.jit(lambda g, x: diagonal_scan(g, x, implementation="xla"))
    h, last = by_chunks(g, x)
    assert h.dtype == last.dtype == jnp.float32
    exact = oracle(g, x.astype(jnp.float32), np.zeros((1, 8)), np.ones((1, 4096)))[0]
    assert np.sqrt(np.square(h - exact).mean() / np.square(exact).mean()) < 0.02
    step = lambda s, now: (diagonal_scan(now[0][:, None], now[1][:, None], state=s)[1],) * 2
    turned = jnp.moveaxis(g[:, :1000], 1, 0), jnp.moveaxis(x[:, :1000], 1, 0)
    states = jax.jit(lambda turned: jax.lax.scan(step, jnp.zeros((1, 8)), turned)[1])(turned)
    close(jnp.moveaxis(states, 0, 1), h[:, :1000])


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ConfigError, match="allowed: reference, xla") as caught:
        diagonal_scan(*draw("real")[:2], implementation="fast")
    assert "\n" not in str(caught.value)


def averages(k, v, w, u, state):
    """wkv as the formula reads, in float64, with plain sums; outputs of padding are 0."""
    k, v, w, u = (np.asarray(a, np.float64) for a in (k, v, w, u))
    n, d = (np.asarray(a, np.float64) * np.exp(np.asarray(state[2], np.float64)) for a in state[:2])
    out = np.zeros_like(v)
    for row in range(len(k)):
        last = 0
        for i, segment in enumerate(SEGMENTS[row]):
            if segment:
                if last not in (0, segment):
                    n[row], d[row] = 0, 0
                last = segment
                now, own = np.exp(u + k[row, i]), np.exp(k[row, i])
                out[row, i] = (n[row] + now * v[row, i]) / (d[row] + now)
                n[row], d[row] = np.exp(w) * n[row] + own * v[row, i], np.exp(w) * d[row] + own
    return out, n, d


@pytest.mark.parametrize("size", [1.0, 60.0])
def test_wkv(size):
    """Also with keys whose exponentials overflow float32; and a row that has not begun has no average."""
    random = np.random.default_rng(0)
    narrow = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    k, v, u = size * narrow(*SEGMENTS.shape, WIDTH), narrow(*SEGMENTS.shape, WIDTH), narrow(WIDTH)
    w, rows = -jnp.exp(narrow(WIDTH)), rows_of(jnp.asarray(SEGMENTS))
    begun = Sums(narrow(4, WIDTH), jnp.exp(narrow(4, WIDTH)), narrow(4, WIDTH))
    for state in (begun, Sums(*(jnp.zeros((4, WIDTH)),) * 3)):
        expected = averages(k, v, w, u, state)
        gradients = []
        for implementation in ("reference", "xla"):

            def loss(k, v, w, u, state, implementation=implementation):
                out, last = wkv(k, v, w, u, rows=rows, state=state, chunk=7, implementation=implementation)
                return jnp.sin(jnp.where(rows.real[..., None], out, 0)).sum(), (out, last)

            slope, (out, last) = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4), has_aux=True))(k, v, w, u, state)
            close(np.where(REAL[..., None], out, 0), expected[0])
            sums = [np.asarray(s, np.float64) * np.exp(np.asarray(last.exponent, np.float64)) for s in last[:2]]
            close(np.log(np.abs(sums)), np.log(np.abs(expected[1:])), 1e-4)
            gradients.append(slope)
        close(gradients[1], gradients[0], 2e-5)
