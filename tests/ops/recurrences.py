"""Laws of recurrences with a matrix of state, for a fixture ``op`` that test modules of single ops define.

The oracle is a loop in numpy in float64, over the same arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.ops.segments import Rows, last_segment, rows_of
from tests.tiny import close, slow

Arrays = dict[str, Any]

# Whole, padded left, in the middle and right, and packed; the first document of a row continues the state.
SEGMENTS = np.ones((4, 37), np.int32)
SEGMENTS[1, :9] = SEGMENTS[1, 20:23] = SEGMENTS[1, 34:] = 0
SEGMENTS[2, 5:], SEGMENTS[2, 18:], SEGMENTS[2, 19:], SEGMENTS[2, 33:] = 2, 3, 4, 5
SEGMENTS[3, :3], SEGMENTS[3, 10:12], SEGMENTS[3, 12:] = 0, 0, 2


@dataclasses.dataclass(frozen=True)
class Op:
    """One op, or one of its forms.

    Attributes:
      run: ``run(arrays, **options) -> (out, state)``.
      token: ``token(state [K, V], arrays of one head and token) -> (out [V], state)``, in numpy.
      shapes: of the arrays, by name, in letters: B, L, H, G, K = 5, V = 3.
    """

    name: str
    run: Callable[..., tuple[jax.Array, jax.Array]]
    token: Callable[[np.ndarray, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
    shapes: dict[str, str]

    def arrays(self, batch: int, length: int, heads: int = 2, groups: int = 1, seed: int = 0) -> Arrays:
        """float32: keys of unit length, decays of about -0.4, beta in (0, 2), b = -0.9 a, and else normal numbers."""
        sizes = {"B": batch, "L": length, "H": heads, "G": groups, "K": 5, "V": 3}
        random = np.random.default_rng(seed)
        found = {}
        for name, letters in self.shapes.items():
            x = random.standard_normal([sizes[letter] for letter in letters])
            if name == "log_decay":
                x = -np.exp(x - 1)
            elif name == "beta":
                x = 2 / (1 + np.exp(-x))
            elif name in ("k", "a"):
                x = x / np.sqrt(np.square(x).sum(-1, keepdims=True))
            elif name == "b":  # as in RWKV-7: what is read along a is taken away
                x = -0.9 * np.asarray(found["a"])
            found[name] = jnp.asarray(x, jnp.float32)
        return found

    def state(self, batch: int, heads: int = 2, seed: int = 1) -> jax.Array:
        return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, heads, 5, 3)), jnp.float32)


def oracle(op: Op, arrays: Arrays, state: Any, segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loops over rows, heads and tokens; outputs of padding are 0."""
    arrays = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
    state = np.array(state, np.float64)
    batch, heads = state.shape[:2]
    out = np.zeros((*segments.shape, heads, state.shape[-1]))
    for row in range(batch):
        last = 0
        for i, segment in enumerate(segments[row]):
            if segment == 0:
                continue
            if last not in (0, segment):
                state[row] = 0
            last = segment
            for head in range(heads):
                own = {}
                for name, x in arrays.items():
                    at = (head,) if op.shapes[name][0] == "H" else (row, i, head * x.shape[2] // heads)
                    own[name] = x[at]
                out[row, i, head], state[row, head] = op.token(state[row, head], own)
    return out, state


def gradients(op: Op, arrays: Arrays, state: jax.Array, rows: Rows | None, **options: Any) -> Any:
    """(out on real tokens, state after) and the gradients of a function of both to all arrays and the state before."""

    def loss(arrays, state):
        out, after = op.run(arrays, rows=rows, state=state, **options)
        out = out if rows is None else jnp.where(rows.real[..., None, None], out, 0)
        return jnp.sin(out).sum() + jnp.cos(after).sum(), (out, after)

    slopes, values = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(arrays, state)
    return values, slopes


@pytest.fixture(scope="module")
def expected(op):
    """Inputs, and the reference's values and gradients, which chunks of any size are to have."""
    arrays, state = op.arrays(*SEGMENTS.shape), op.state(len(SEGMENTS))
    rows = rows_of(jnp.asarray(SEGMENTS))
    values, slopes = gradients(op, arrays, state, rows, implementation="reference")
    close(values, oracle(op, arrays, state, SEGMENTS))
    return arrays, state, rows, values, slopes


@pytest.mark.parametrize("chunk", [7, 64, *slow((1,), (16,), (32,))])
def test_chunks_of_any_size(op, expected, chunk):
    arrays, state, rows, values, slopes = expected
    found, gradient = gradients(op, arrays, state, rows, implementation="xla", chunk=chunk)
    close(found, values)
    close(gradient, slopes, 2e-5)


def test_float64_with_neither_rows_nor_a_state(op):
    """And a key head for each head."""
    arrays = op.arrays(2, 21, heads=2, groups=2)
    expected = oracle(op, arrays, np.zeros((2, 2, 5, 3)), np.ones((2, 21), np.int32))
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(x, jnp.float64) for name, x in arrays.items()}
        both = lambda x: {name: op.run(x, chunk=16, implementation=name) for name in ("xla", "reference")}
        for found in jax.jit(both)(arrays).values():
            assert all(x.dtype == jnp.float64 for x in found)
            close(found, expected, 1e-13)


def test_two_halves_are_one(op):
    """The second of documents that began in the first; row by row under vmap."""
    arrays, state, segments = op.arrays(*SEGMENTS.shape), op.state(len(SEGMENTS)), jnp.asarray(SEGMENTS)
    by_row = {name: 0 if letters[0] == "B" else None for name, letters in op.shapes.items()}

    def piece(arrays, segments, state, at, before=None):
        """Of one row, given without its batch axis, as is what it returns."""
        given = {name: x if by_row[name] is None else x[None, at] for name, x in arrays.items()}
        rows = rows_of(segments[None, at], None if before is None else before[None])
        return jax.tree.map(lambda x: x[0], op.run(given, rows=rows, state=state[None], chunk=16))

    def halves(arrays, segments, state, before):
        first, middle = piece(arrays, segments, state, slice(0, 22))
        second, end = piece(arrays, segments, middle, slice(22, 37), before)
        return jnp.concatenate((first, second)), end

    last = last_segment(segments[:, :22], jnp.zeros(len(SEGMENTS), jnp.int32))
    out, end = jax.jit(jax.vmap(halves, (by_row, 0, 0, 0)))(arrays, segments, state, last)
    out = jnp.where((SEGMENTS != 0)[..., None, None], out, 0)
    close((out, end), oracle(op, arrays, state, SEGMENTS))


def test_decays_of_all_sizes_side_by_side(op):
    """Log decays of -1e-7 beside some of -20 and -200: digits are kept, gradients finite and right."""
    if "log_decay" not in op.shapes:
        pytest.skip("no decay")
    arrays, state = op.arrays(2, 50), op.state(2)
    draw = np.random.default_rng(3).choice(
        [-1e-7, -1e-3, -20.0, -200.0], arrays["log_decay"].shape, p=[0.5, 0.3, 0.1, 0.1]
    )
    arrays["log_decay"] = jnp.asarray(draw, jnp.float32)
    values, slopes = gradients(op, arrays, state, None, chunk=48)
    close(values, oracle(op, arrays, state, np.ones((2, 50), np.int32)))
    close(slopes, gradients(op, arrays, state, None, implementation="reference")[1], 2e-5)


def test_a_thousand_steps_do_not_drift(op):
    arrays = op.arrays(1, 1000)
    along = {name: x for name, x in arrays.items() if op.shapes[name][0] == "B"}
    fixed = {name: x for name, x in arrays.items() if name not in along}

    def step(state, now):
        out, state = op.run({**fixed, **jax.tree.map(lambda x: x[:, None], now)}, state=state)
        return state, out[:, 0]

    turned = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), along)
    both = lambda s, x, arrays: (jax.lax.scan(step, s, x), op.run(arrays))
    (state, out), whole = jax.jit(both)(jnp.zeros((1, 2, 5, 3)), turned, arrays)
    close((jnp.moveaxis(out, 0, 1), state), whole, 2e-5)


@pytest.mark.slow
def test_bfloat16_inputs(op):
    """Over 4096 tokens the error stays below 2 % of the output: the state is float32 whatever the inputs are."""
    arrays = op.arrays(1, 4096)
    low = {n: x if n in ("log_decay", "beta", "bonus") else x.astype(jnp.bfloat16) for n, x in arrays.items()}
    out, state = jax.jit(lambda arrays: op.run(arrays))(low)
    assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    exact = jax.jit(lambda arrays: op.run(arrays))(arrays)[0]
    error = np.asarray(out, np.float32) - np.asarray(exact)
    assert np.sqrt(np.square(error).mean() / np.square(exact).mean()) < 0.02


def test_what_cannot_work_is_refused(op):
    for options, message in (
        ({"implementation": "fast"}, "allowed: reference, xla"),
        ({"chunk": 0}, "chunk: expected"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            op.run(op.arrays(1, 2), **options)
        assert "\n" not in str(caught.value)
