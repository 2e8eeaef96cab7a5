"""The selective scan against a loop in float64: chunks, documents, states, extreme decays, and the memory it takes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.ops.segments import rows_of
from jaxlm.ops.selective_scan import selective_scan
from tests.ops.recurrences import SEGMENTS
from tests.tiny import close, slow

CHANNELS, STATES, GROUPS = 4, 3, 2


BATCH, LENGTH = SEGMENTS.shape


def draw(batch=BATCH, length=LENGTH, constant=False, seed=0):
    random = np.random.default_rng(seed)
    shape = (CHANNELS, STATES) if constant else (batch, length, GROUPS, STATES)
    arrays = {
        "u": random.standard_normal((batch, length, CHANNELS)),
        "delta": np.exp(random.standard_normal((batch, length, CHANNELS)) - 1),
        "a": -np.exp(random.standard_normal((CHANNELS, STATES))),
        "b": random.standard_normal(shape),
        "c": random.standard_normal(shape),
        "d": random.standard_normal(CHANNELS),
        "state": random.standard_normal((batch, CHANNELS, STATES)),
    }
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def oracle(arrays, segments):
    """Outputs of padding are 0."""
    x = {name: np.array(value, np.float64) for name, value in arrays.items()}
    y, state = np.zeros(x["u"].shape), x["state"]
    each = lambda m, row, i: m if m.ndim == 2 else np.repeat(m[row, i], CHANNELS // GROUPS, 0)
    for row in range(len(y)):
        last = 0
        for i, segment in enumerate(segments[row]):
            if segment:
                if last not in (0, segment):
                    state[row] = 0
                last = segment
                delta, u = x["delta"][row, i][:, None], x["u"][row, i]
                state[row] = np.exp(delta * x["a"]) * state[row] + delta * u[:, None] * each(x["b"], row, i)
                y[row, i] = (each(x["c"], row, i) * state[row]).sum(1) + x["d"] * u
    return y, state


def values_and_slopes(arrays, rows, **options):
    def loss(arrays):
        y, last = selective_scan(**arrays, rows=rows, **options)
        y = y if rows is None else jnp.where(rows.real[..., None], y, 0)
        return jnp.sin(y).sum() + jnp.cos(last).sum(), (y, last)

    slope, values = jax.jit(jax.grad(loss, has_aux=True))(arrays)
    return values, slope


@functools.cache
def references(constant):
    arrays = draw(constant=constant)
    values, slope = values_and_slopes(arrays, rows_of(jnp.asarray(SEGMENTS)), implementation="reference")
    close(values, oracle(arrays, SEGMENTS))
    return arrays, values, slope


OTHERS = [(constant, *form) for constant in (False, True) for form in [(1, "xla"), (7, "tree"), (16, None)]]
OTHERS += [(True, 7, "xla"), (True, 64, "tree"), (False, 64, "xla"), (False, 16, "tree")]


@pytest.mark.parametrize(
    ("constant", "chunk", "implementation"),
    [
        (False, 7, "xla"),
        (False, 64, "tree"),
        (True, 64, "xla"),
        (True, 16, "tree"),
        *slow(*OTHERS),
    ],
)
def test_chunks_of_any_size(constant, chunk, implementation):
    """``constant`` for b and c that are the same for all tokens."""
    arrays, values, slope = references(constant)
    rows = rows_of(jnp.asarray(SEGMENTS))
    found, gradient = values_and_slopes(arrays, rows, chunk=chunk, implementation=implementation)
    close(found, values)
    close(gradient, slope, 2e-5)


def test_two_halves_are_one_and_vmap():
    arrays = draw()
    expected = oracle(arrays, np.ones_like(SEGMENTS))
    along = ("u", "delta", "b", "c")
    cut = lambda at: {name: x[:, at] if name in along else x for name, x in arrays.items()}
    run = jax.jit(functools.partial(selective_scan, chunk=8))
    first, middle = run(**cut(slice(0, 13)))
    second, last = run(**{**cut(slice(13, None)), "state": middle})
    close((jnp.concatenate((first, second), 1), last), expected)
    axes = {name: 0 if name in (*along, "state") else None for name in arrays}
    one = lambda x: selective_scan(**{n: v if axes[n] is None else v[None] for n, v in x.items()}, chunk=8)[0][0]
    close(jax.jit(jax.vmap(one, (axes,)))(arrays), expected[0])


@pytest.mark.parametrize("implementation", ["xla", "tree"])
def test_decays_of_all_sizes_side_by_side(implementation):
    """Inputs shrink as steps grow, or y would be in the thousands, whose sines have lost 1e-4 in float32."""
    arrays = draw()
    choice = np.random.default_rng(3).choice([1e-7, 1e-3, 20.0, 200.0], arrays["delta"].shape, p=[0.5, 0.3, 0.1, 0.1])
    arrays |= {"delta": jnp.asarray(choice, jnp.float32), "a": -jnp.ones_like(arrays["a"])}
    arrays["u"] /= np.maximum(arrays["delta"], 1)
    found, slope = values_and_slopes(arrays, None, implementation=implementation)
    close(found, oracle(arrays, np.ones_like(SEGMENTS)))
    close(slope, values_and_slopes(arrays, None, implementation="reference")[1], 2e-5)


def test_bfloat16_inputs_and_a_thousand_steps():
    arrays = draw(1, 4096)
    del arrays["state"]
    low = {name: x if name in ("delta", "a", "d") else x.astype(jnp.bfloat16) for name, x in arrays.items()}
    y, last = jax.jit(lambda x: selective_scan(**x))(low)
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    wide = {name: x.astype(jnp.float32) for name, x in low.items()}
    exact = np.asarray(jax.jit(lambda x: selective_scan(**x))(wide)[0])
    assert np.sqrt(np.square(np.asarray(y, np.float32) - exact).mean() / np.square(exact).mean()) < 0.02
    along = {name: jnp.moveaxis(wide[name][:, :1000], 1, 0) for name in ("u", "delta", "b", "c")}

    def step(state, now):
        y, state = selective_scan(**{n: x[:, None] for n, x in now.items()}, a=wide["a"], d=wide["d"], state=state)
        return state, y[:, 0]

    steps = jax.jit(lambda x: jax.lax.scan(step, jnp.zeros((1, CHANNELS, STATES)), x)[1])(along)
    close(jnp.moveaxis(steps, 0, 1), exact[:, :1000])


@pytest.mark.parametrize("implementation", ["xla", "tree"])
def test_states_of_all_tokens_are_never_held(implementation):
    """The backward pass of the compiled program needs far less than B L C N numbers."""
    batch, length, channels, states = 1, 2048, 16, 16
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    u, bc = shape(batch, length, channels), shape(batch, length, 1, states)
    loss = lambda u, delta, a, b, c: selective_scan(u, delta, a, b, c, chunk=32, implementation=implementation)[0].sum()
    compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(u, u, shape(channels, states), bc, bc).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 4 * batch * length * channels * states


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ConfigError, match="allowed: reference, tpu, tree, triton, xla") as caught:
        selective_scan(**draw(), implementation="fast")
    assert "\n" not in str(caught.value)
