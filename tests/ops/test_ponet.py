"""The poolings of PoNet against loops over documents: padded, packed, and in pieces."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import ponet
from jaxlm.ops.segments import rows_of

HEADS, WIDTH, LENGTH = 2, 3, 13
SEGMENTS = np.asarray(
    [[1] * 13, [0] * 4 + [1] * 9, [1] * 5 + [0] * 3 + [1] * 5, [1] * 4 + [2] * 5 + [0] * 1 + [3] * 3], np.int32
)


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((len(SEGMENTS), LENGTH, HEADS, WIDTH)).astype(np.float32) for _ in range(count)]


def documents():
    for b, row in enumerate(SEGMENTS):
        for segment in sorted(set(row.tolist()) - {0}):
            yield b, np.flatnonzero(row == segment)


def weighted(scores, k):
    weights = np.exp(scores - scores.max())
    return weights @ k / weights.sum()


@pytest.mark.parametrize("size", [1, 3, 20])
def test_whole(size):
    q, k, s, x = draw(4)
    rows = rows_of(jnp.asarray(SEGMENTS))
    found = jax.jit(
        lambda q, k, s, x: (
            ponet.whole_global(q, k, rows),
            ponet.whole_segments(s, size, rows),
            ponet.whole_local(x, 5, rows),
        )
    )(q, k, s, x)
    for b, at in documents():
        for h in range(HEADS):
            mean = q[b, at, h].mean(0)
            for i, t in enumerate(at):
                start = i // size * size
                expected = (
                    weighted(k[b, at, h] @ mean / WIDTH**0.5, k[b, at, h]),
                    s[b, at[start : start + size], h].max(0),
                    x[b, at[max(0, i - 2) : i + 3], h].max(0),
                )
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(one[b, t, h], other, rtol=2e-5, atol=1e-5)


def run(q, k, s, segments, size, state=None):
    """Both running poolings, and what they carry: (running, segments, the last token's segment)."""
    batch = len(q)
    if state is None:
        zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.float32)
        running = ponet.Running(zeros(), *(zeros(*x) for x in ((HEADS, WIDTH), (HEADS,), (HEADS,), (HEADS, WIDTH))))
        state = running, zeros(2, HEADS, WIDTH), jnp.zeros((batch,), jnp.int32)
    rows = rows_of(jnp.asarray(segments), state[2])
    everywhere, count, running = ponet.running_global(q, k, state[0], rows)
    done, within = ponet.running_segments(s, size, count, state[1], rows)
    return everywhere, done, (running, within)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_running(size):
    q, k, s = draw(3)
    everywhere, done, _ = jax.jit(lambda q, k, s: run(q, k, s, SEGMENTS, size))(q, k, s)
    for b, at in documents():
        for h in range(HEADS):
            scores = []
            for i, t in enumerate(at):
                scores.append(k[b, t, h] @ q[b, at[: i + 1], h].mean(0) / WIDTH**0.5)
                np.testing.assert_allclose(
                    everywhere[b, t, h], weighted(np.array(scores), k[b, at[: i + 1], h]), rtol=2e-5, atol=1e-5
                )
                end = i // size * size
                complete = s[b, at[end - size : end], h].max(0) if end else np.zeros(WIDTH)
                np.testing.assert_allclose(done[b, t, h], complete, rtol=1e-6)


def test_scores_of_any_size_are_carried():
    """Far beyond what exp holds, in both directions, the softmax is the greatest score's key, or their mean."""
    q, k, s = draw(3)
    for factor in (1e4, -1e4):
        keys = np.where(np.arange(LENGTH)[:, None, None] == 5, factor, 0) + k
        ones = np.ones_like(q)
        function = lambda k, ones=ones: run(ones, k, s, np.ones_like(SEGMENTS), 3)[0]
        found = jax.jit(function)(keys)
        assert np.isfinite(found).all()
        best = keys[:, :6].sum(-1).argmax(1)  # [B, H]
        picked = np.take_along_axis(keys, best[:, None, :, None], 1)[:, 0]
        if factor > 0:
            np.testing.assert_allclose(found[:, 5], picked, rtol=1e-5)
        gradient = jax.jit(jax.grad(lambda k, function=function: jnp.sin(function(k)).sum()))(keys)
        assert np.isfinite(gradient).all()
