"""Kernels of state spaces against their recurrences in float64, and convolutions that keep documents apart."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.mixer.s4d import INITS, diagonal_init
from jaxlm.ops.fft_conv import fft_conv, good_size
from jaxlm.ops.hippo import legs
from jaxlm.ops.s4_kernel import Diagonal, Dplr, advance, diagonal_kernel, discretise, dplr_kernel, powers
from jaxlm.ops.segments import rows_of
from tests.ops.recurrences import SEGMENTS
from tests.tiny import close, slow

HEADS = 4


def narrow(tree):
    """In single precision, rounded from double."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.complex64 if np.iscomplexobj(x) else jnp.float32), tree)


def systems(states: int):
    """S4 and S4D as they begin, with steps of 1e-3 to 1e-1, as float64 arrays."""
    random = np.random.default_rng(0)
    c = random.standard_normal((HEADS, states // 2, 2)) @ np.array([1, 1j]) * 0.5**0.5
    dt = np.geomspace(1e-3, 1e-1, HEADS)
    each = lambda x: np.broadcast_to(x, c.shape)
    made = legs(states)
    yield "s4", lambda wide: Dplr(each(made.eigenvalues), each(made.p), each(made.b), c, dt), dplr_kernel
    for init in INITS:
        a, b = map(each, diagonal_init(init, states))
        for rule in ("zoh", "bilinear"):
            make = lambda wide, a=a, b=b, rule=rule: (
                Diagonal(*discretise(*map(jnp.asarray, (a, b, dt[:, None])), rule), c)
                if wide
                else Diagonal(*discretise(*narrow((a, b, dt[:, None])), rule), c)
            )
            yield f"{init}-{rule}", make, diagonal_kernel


def impulse(length: int, dtype) -> jax.Array:
    return jnp.zeros((1, length, HEADS), dtype).at[:, 0].set(1)


@functools.cache
def answers(length: int):
    """A jitted ``system -> outputs``, one for all systems of a form: what they are is in the arrays."""
    return jax.jit(lambda s: advance(s, impulse(length, s.c.real.dtype), states=8)[0][0])


@functools.cache
def kernels(kernel, length: int):
    return jax.jit(lambda s: kernel(s, length))


@pytest.mark.parametrize("length", [1, 37, 1024, *slow((2,))])
def test_kernels_are_answers_to_an_impulse(length):
    """In double precision to 1e-10, in single precision to 1e-5, but for the recurrence's own loss.

    That takes powers of an Abar that is rounded once, by up to 2^-24: after L tokens the state's phase is L 2^-24 off.
    """
    for name, make, kernel in systems(16):
        with jax.enable_x64(True):
            system = jax.tree.map(jnp.asarray, make(True))
            exact = np.asarray(answers(length)(system))
            np.testing.assert_allclose(kernels(kernel, length)(system), exact, rtol=0, atol=1e-10, err_msg=name)
        system = narrow(make(False))
        error = lambda found, exact=exact: (np.abs(np.asarray(found) - exact) / np.abs(exact).max(0)).max()
        assert error(kernels(kernel, length)(system)) < 1e-5, name
        assert error(answers(length)(system)) < 1e-5 + length * 2.0**-24, name


@pytest.mark.parametrize("states", [256, *slow((64,))])
def test_kernels_of_large_states(states):
    """Single precision against double: eigenvalues of 256 states are greater, and so is what rounding them once costs.

    With steps of .1, the real ones have an Abar of exactly 0 under the bilinear rule, which has no logarithm.
    """
    for name, make, kernel in systems(states):
        with jax.enable_x64(True):
            exact = np.asarray(kernels(kernel, 1024)(jax.tree.map(jnp.asarray, make(True))))
        found = np.asarray(kernels(kernel, 1024)(narrow(make(False))))
        assert (np.abs(found - exact) / np.abs(exact).max(0)).max() < (1e-5 if name == "s4" else 1e-4), name


def test_angles_of_thousands_of_turns():
    angle = np.float32(np.random.default_rng(0).uniform(-100, 100, 64))
    for exponents in (np.arange(4096), 64 * np.arange(4096)):
        found = jax.jit(lambda g, e=exponents: powers(g, jnp.asarray(e)))(jnp.asarray(1j * angle, jnp.complex64))
        exact = np.exp(1j * exponents[:, None] * angle.astype(np.float64))
        assert np.abs(found - exact).max() < 1e-6


@pytest.mark.parametrize("size", [7, 64, *slow((1,))])
def test_recurrence_with_documents_and_a_state(size):
    """Against float64, token by token."""
    random = np.random.default_rng(1)
    u = jnp.asarray(random.standard_normal((*SEGMENTS.shape, HEADS)), jnp.float32)
    start = jnp.asarray(random.standard_normal((len(u), HEADS, 4, 2)) @ [1, 1j], jnp.complex64)
    rows = rows_of(jnp.asarray(SEGMENTS))
    name, make, _ = next(iter(systems(8)))
    system = narrow(make(False))
    y, last = jax.jit(lambda u, s: advance(system, u, rows=rows, state=s, states=4, chunk=size))(u, start)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float64)), system)
        token = jax.jit(lambda x, u: (exact.step(x, u), exact.read(exact.step(x, u))))
        for row, marks in enumerate(SEGMENTS):
            x, before = jnp.asarray(start[row], jnp.complex128), 0
            for i in np.flatnonzero(marks):
                x = x if before in (0, marks[i]) else jnp.zeros_like(x)
                before = marks[i]
                x, alone = token(x, jnp.asarray(u[row, i], jnp.float64))
                close(y[row, i], alone)
            close((jnp.real(last[row]), jnp.imag(last[row])), (jnp.real(x), jnp.imag(x)))


@pytest.mark.parametrize("length, reach", [(37, 5), (37, 99), *slow((37, 37), (300, 300))])
def test_convolution_of_documents(length, reach):
    """Against sums in float64; other documents and padding leave no trace, not even of rounding."""
    random = np.random.default_rng(0)
    segments = np.ones((3, length), np.int32)
    segments[0, :9] = segments[0, 20:23] = segments[0, 34:36] = 0
    segments[1, 5:], segments[1, 18:], segments[1, 19:], segments[1, 33:] = 2, 3, 4, 0
    segments[2, : length // 3], segments[2, length // 2 :] = 0, 2
    x, kernel = (random.standard_normal((*s, 2)).astype(np.float32) for s in (segments.shape, (reach,)))
    expected = np.zeros(x.shape)
    for row, marks in enumerate(segments):
        for mark in set(marks.tolist()) - {0}:
            at = np.flatnonzero(marks == mark)
            for channel in range(2):
                full = np.convolve(x[row, at, channel].astype(np.float64), kernel[:, channel].astype(np.float64))
                expected[row, at, channel] = full[: len(at)]
    run = jax.jit(lambda x, k: fft_conv(x, k, rows=rows_of(jnp.asarray(segments))))
    real = segments != 0
    found = np.asarray(run(x, kernel))
    close(found[real], expected[real])
    other = segments == 2
    changed = np.asarray(run(np.where(other[..., None], x + 1, x), kernel))
    np.testing.assert_array_equal(changed[real & ~other], found[real & ~other])
    plain = np.stack([np.convolve(x[0, :, c], kernel[:, c])[:length] for c in range(2)], -1)
    close(fft_conv(jnp.asarray(x[:1]), jnp.asarray(kernel))[0], plain)
    slope = lambda rows: jax.jit(jax.grad(lambda x, k: jnp.sin(fft_conv(x, k, rows=rows)).sum(), (0, 1)))(x, kernel)
    close(slope(rows_of(jnp.ones_like(segments))), slope(None), 2e-5)


def test_sizes_of_transforms():
    for size in range(1, 300):
        found = good_size(size)
        odd = found // (found & -found)
        assert size <= found < 2 * size + 2 and odd in (1, 3, 5)
    assert [good_size(n) for n in (1, 6, 9, 11, 17, 65, 129)] == [1, 6, 10, 12, 20, 80, 160]
