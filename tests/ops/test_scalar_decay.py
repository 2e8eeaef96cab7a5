"""Scalar decay by chunks against the recurrence token by token, and that against sums written out in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.ops.scalar_decay import scalar_decay
from jaxlm.ops.segments import rows_of
from tests.tiny import close, slow

BATCH, LENGTH, GROUPS, HEADS, WIDTH, DEPTH = 4, 37, 2, 4, 3, 5
CHUNKS = [7, 64, *slow((1,), (16,))]  # 64 is more than there are tokens

# Whole, padded left, padded in mid-stream and right, packed with padding between documents.
SEGMENTS = np.asarray(
    [
        [1] * 37,
        [0] * 9 + [1] * 28,
        [1] * 11 + [0] * 8 + [1] * 9 + [0] * 9,
        [1] * 5 + [2] * 12 + [0] * 3 + [3] * 1 + [4] * 10 + [0] * 6,
    ],
    np.int32,
)
BEFORE = np.asarray([1, 0, 2, 1], np.int32)  # the third row's state belongs to another document


def draw(length: int = LENGTH, batch: int = BATCH, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {
        "q": normal(batch, length, GROUPS, WIDTH),
        "k": normal(batch, length, GROUPS, WIDTH),
        "v": normal(batch, length, HEADS, DEPTH),
        "log_decay": -np.exp(normal(batch, length, HEADS)),
        "state": normal(batch, HEADS, WIDTH, DEPTH),
    }


def decays(kind: str, x: dict) -> dict:
    """Arguments with a decay of each token, one per head for all, or none."""
    if kind == "token":
        return x
    rest = {name: value for name, value in x.items() if name != "log_decay"}
    return {**rest, "log_decay": -np.asarray([0.01, 0.1, 0.5, 3.0], np.float32)} if kind == "head" else rest


def run(x: dict, rows=None, **form):
    rest = {name: value for name, value in x.items() if name not in "qkv"}
    return scalar_decay(x["q"], x["k"], x["v"], rest.get("log_decay"), rows=rows, state=rest.get("state"), **form)


def jitted(**form):
    return jax.jit(lambda x, rows=None: run(x, rows, **form))


def oracle(x: dict, segments: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each output as the sum over all tokens that it may see, in float64."""
    q, k, v, state = (np.asarray(x[name], np.float64) for name in ("q", "k", "v", "state"))
    decay = np.broadcast_to(np.asarray(x.get("log_decay", 0.0), np.float64), v.shape[:3])
    out, last = np.zeros(v.shape), np.zeros(state.shape)
    for b in range(len(q)):
        real = [t for t in range(q.shape[1]) if segments[b, t]]
        given = before[b] or segments[b, real[0]]  # what the state that was given belongs to
        for h in range(v.shape[2]):
            g = h // (v.shape[2] // q.shape[2])
            for n, i in enumerate(real):
                matrix = np.zeros(state.shape[2:])
                own = [j for j in real[: n + 1] if segments[b, j] == segments[b, i]]
                for j in own:
                    fade = sum(decay[b, t, h] for t in own if t > j)
                    matrix += np.exp(fade) * np.outer(k[b, j, g], v[b, j, h])
                if segments[b, i] == given:
                    matrix += np.exp(sum(decay[b, t, h] for t in own)) * state[b, h]
                out[b, i, h], last[b, h] = q[b, i, g] @ matrix, matrix
    return out, last


@pytest.mark.parametrize("kind", ["token", "head", "none"])
def test_the_reference_is_the_sum_written_out(kind):
    x = decays(kind, draw())
    out, state = jitted(implementation="reference")(x, rows_of(jnp.asarray(SEGMENTS), jnp.asarray(BEFORE)))
    wanted, last = oracle(x, SEGMENTS, BEFORE)
    real = SEGMENTS != 0
    close(np.asarray(out)[real], wanted[real])
    close(state, last)


def values_and_gradients(x, rows, **form):
    """Outputs at real tokens and the state; and gradients, of everything there is, of a sum over both."""
    real = 1.0 if rows is None else np.asarray(rows.real)[..., None, None]

    def total(x):
        out, state = run(x, rows, **form)
        out = jnp.where(real, out, 0)
        return jnp.sin(out).sum() + jnp.sin(state).sum(), (out, state)

    return jax.jit(jax.grad(total, has_aux=True))(x)


@functools.cache
def references(kind, packed):
    rows = rows_of(jnp.asarray(SEGMENTS), jnp.asarray(BEFORE)) if packed else None
    x = decays(kind, draw())
    return x, rows, values_and_gradients(x, rows, implementation="reference")


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("kind", "packed"),
    [("token", True), ("head", True), ("none", False), *slow(("token", False), ("head", False), ("none", True))],
)
def test_chunks_are_the_reference(kind, packed, chunk):
    x, rows, wanted = references(kind, packed)
    close(values_and_gradients(x, rows, chunk=chunk), wanted)


@pytest.mark.parametrize(("kind", "packed"), [("token", True), ("head", False)])
def test_long_rows_go_piece_by_piece(kind, packed, monkeypatch):
    """Here of two chunks each, 32 of 37 tokens in all; then a chunk, and a token."""
    monkeypatch.setattr("jaxlm.ops.scalar_decay.PAIRS", 2 * BATCH * HEADS * 4**2)
    x, rows, wanted = references(kind, packed)
    close(values_and_gradients(x, rows, chunk=4), wanted)


@pytest.mark.parametrize("chunk", [7, *slow((64,))])
def test_without_a_state_it_begins_with_zeros(chunk):
    x = draw()
    none = {name: value for name, value in x.items() if name != "state"}
    zeros = {**x, "state": np.zeros_like(x["state"])}
    close(jitted(chunk=chunk)(none), jitted(implementation="reference")(zeros))


@pytest.mark.parametrize(
    ("kind", "cut"), [("token", 16), ("token", 36), ("none", 1), *slow(("token", 1), ("none", 16), ("none", 36))]
)
def test_two_pieces_are_one(kind, cut):
    """Rows that are packed and padded, cut anywhere; a piece of one token takes another path."""
    x = decays(kind, draw())
    segments, call = jnp.asarray(SEGMENTS), jitted(chunk=16)
    whole = call(x, rows_of(segments, BEFORE))
    at = lambda s: {name: value if name == "state" else value[:, s] for name, value in x.items()}
    first, state = call(at(slice(cut)), rows_of(segments[:, :cut], BEFORE))
    between = [max([s for s in row[:cut] if s], default=last) for row, last in zip(SEGMENTS, BEFORE, strict=True)]
    rows = rows_of(segments[:, cut:], jnp.asarray(between, jnp.int32))
    second, state = call({**at(slice(cut, None)), "state": state}, rows)
    real = SEGMENTS != 0
    close(np.concatenate((first, second), 1)[real], np.asarray(whole[0])[real])
    close(state, whole[1])


@pytest.mark.parametrize("chunk", [64, *slow((16,))])
def test_decays_of_all_sizes_are_exact_and_finite(chunk):
    """Log decays of -1e-7 right behind -200: running sums of thousands, against float64 token by token."""
    x = draw(length=128, batch=2)
    x["log_decay"] = -np.random.default_rng(1).choice([1e-7, 1e-4, 0.02, 20.0, 200.0], x["log_decay"].shape)
    assert x["log_decay"][:, :64].sum(1).min() < -3000
    with jax.enable_x64():
        x64 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), x)
        wanted = jax.tree.map(np.asarray, values_and_gradients(x64, None, implementation="reference"))
    x["log_decay"] = x["log_decay"].astype(np.float32)
    close(values_and_gradients(x, None, chunk=chunk), wanted)


def test_small_decays_behind_strong_ones_keep_their_digits():
    """What 60 tokens of -160 have done to a running sum must not be seen in the decay between two later ones."""
    x = draw(length=64, batch=1)
    x["log_decay"] = np.full_like(x["log_decay"], -160.0)
    x["log_decay"][:, 60:] = -1e-3
    out, first = (jitted(**form)(x)[0][:, 60:] for form in ({"chunk": 64}, {"implementation": "reference"}))
    close(out, first, 2e-6)


def test_bfloat16_loses_little(chunk=64):
    x = draw(length=4096, batch=1)
    x["log_decay"] *= 0.02
    exact = np.asarray(jitted(chunk=chunk)(x)[0])
    half = {name: jnp.asarray(v, jnp.bfloat16) if name in "qkv" else v for name, v in x.items()}
    out, state = jitted(chunk=chunk)(half)
    assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    error = np.asarray(out, np.float32) - exact
    assert np.sqrt((error**2).mean()) < 0.02 * np.sqrt((exact**2).mean())


def test_a_thousand_steps_do_not_drift():
    x = draw(length=1000, batch=1)
    x["log_decay"] *= 0.02
    whole, last = jitted()(x)

    def step(state, now):
        out, state = scalar_decay(*(a[:, None] for a in now), state=state)
        return state, out[:, 0]

    tokens = tuple(jnp.moveaxis(jnp.asarray(x[name]), 1, 0) for name in ("q", "k", "v", "log_decay"))
    state, out = jax.jit(lambda state, tokens: jax.lax.scan(step, state, tokens))(jnp.asarray(x["state"]), tokens)
    close(jnp.moveaxis(out, 0, 1), whole, 1e-4)
    close(state, last, 1e-4)


def test_vmap():
    x = draw()
    parts = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), x)
    halves = jax.jit(jax.vmap(lambda x: run(x, chunk=16)))(parts)
    close(jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), halves), jitted(chunk=16)(x))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"implementation": "cuda"}, "scalar_decay: implementation"),
        ({"chunk": 0}, "scalar_decay: chunk"),
        ({"heads": 3}, "3 heads are not a multiple of 2 groups"),
    ],
)
def test_bad_arguments(change, says):
    x = draw()
    heads = change.pop("heads", HEADS)
    with pytest.raises(ConfigError, match=says) as caught:
        scalar_decay(x["q"], x["k"], x["v"][:, :, :heads], **change)
    assert "\n" not in str(caught.value)
