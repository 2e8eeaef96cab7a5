"""Reading from a memory of landmarks, against an oracle that lays out each query's slots as the paper's code does."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import landmark_retrieval
from jaxlm.ops.landmark_retrieval import Memory, Queries, retrieved_attention
from jaxlm.position.rotary import Rotary
from tests.tiny import close

BATCH, BLOCKS, PERIOD, HEADS, GROUPS, WIDTH = 2, 6, 3, 4, 2, 8
LENGTH = BLOCKS * PERIOD - 1
ROTARY = Rotary(base=40.0)


def rotate(x, positions):
    return ROTARY.rotate({}, x, positions, None)


def rotated(x: np.ndarray, position: int) -> np.ndarray:
    even, odd = np.split(x, 2)
    angles = position * 40.0 ** (-np.arange(WIDTH // 2) * 2 / WIDTH)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate((even * cos - odd * sin, odd * cos + even * sin))


def draw():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((BATCH, LENGTH, HEADS, WIDTH)).astype(np.float32) * 2
    k, v = (rng.standard_normal((BATCH, GROUPS, BLOCKS * PERIOD, WIDTH)).astype(np.float32) for _ in "kv")
    return q, k, v


def ours(blocks: int, stingy: bool = True, first: int = 0, segments: np.ndarray | None = None) -> np.ndarray:
    """Queries ``first`` and later, over a memory whose last slot is empty."""
    q, k, v = draw()
    at = np.broadcast_to(np.arange(BLOCKS * PERIOD), (BATCH, BLOCKS * PERIOD))
    if segments is None:
        segments = np.ones_like(at)
    segments = np.where(at < LENGTH, segments, 0)
    cut = lambda x: x[:, first:LENGTH]
    in_blocks = lambda x: x.reshape(*x.shape[:-2], BLOCKS, PERIOD, WIDTH)
    fetch = lambda place: tuple(jnp.take_along_axis(in_blocks(x), place[..., None, None], 2) for x in (k, v))
    out = retrieved_attention(
        Queries(q[:, first:], cut(at), cut(at), cut(segments)),
        Memory(in_blocks(k)[..., -1, :], at.reshape(BATCH, BLOCKS, -1), segments.reshape(BATCH, BLOCKS, -1), fetch),
        blocks=blocks,
        stingy=stingy,
        rotate_q=rotate,
        rotate_k=rotate,
        scale=WIDTH**-0.5,
    )
    return np.asarray(out)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def oracle(blocks: int) -> np.ndarray:
    q, k, v = draw()
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(*q.shape[:3]):
        keys, values = k[b, h // 2], v[b, h // 2]
        number, offset = i // PERIOD, i % PERIOD
        here = min(number, blocks + 1) * PERIOD
        query = rotated(q[b, i, h], here + offset)

        def score(j: int, slot: int, query=query, keys=keys) -> float:
            return query @ rotated(keys[j], slot * PERIOD + j % PERIOD) * WIDTH**-0.5

        # Where landmarks stand while they are chosen: the newest in slots 1 to k, older ones in slot 0.
        few = number <= blocks
        slots = [g if few else max(0, g - (number - blocks) + 1) for g in range(number)]
        marks = [score(g * PERIOD + PERIOD - 1, slots[g]) for g in range(number)]
        chosen = sorted(np.argsort(marks)[::-1][:blocks])
        outer, parts = [], []
        for n, g in enumerate(chosen):
            slot = n + (not few and g >= number - blocks)
            outer.append(score(g * PERIOD + PERIOD - 1, slot))
            tokens = range(g * PERIOD, g * PERIOD + PERIOD - 1)
            weights = softmax(np.array([score(j, slot) for j in tokens]))
            parts.append(weights @ values[g * PERIOD : g * PERIOD + PERIOD - 1])
        for j in range(number * PERIOD, i + 1):
            if j % PERIOD != PERIOD - 1:
                outer.append(score(j, here // PERIOD))
                parts.append(values[j])
        out[b, i, h] = softmax(np.array(outer)) @ np.array(parts)
    return out


@pytest.mark.parametrize(
    "blocks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(5, marks=pytest.mark.slow)]
)
def test_equals_the_oracle(blocks: int) -> None:
    close(ours(blocks), oracle(blocks), 1e-5)


def test_in_pieces_and_at_once(monkeypatch) -> None:
    whole = ours(2)
    monkeypatch.setattr(landmark_retrieval, "BUDGET", 500)  # a few queries at a time
    close(ours(2), whole, 1e-6)
    close(ours(2, first=7), whole[:, 7:], 1e-6)


def test_original_positions_differ_once_there_are_more_blocks_than_are_read() -> None:
    stingy, original = ours(1), ours(1, stingy=False)
    near = (1 + 2) * PERIOD  # up to two earlier blocks stand where they stood
    close(stingy[:, :near], original[:, :near], 1e-5)
    assert np.abs(stingy[:, near:] - original[:, near:]).max() > 1e-2


def test_blocks_of_other_documents_are_not_read() -> None:
    """A document that begins in mid-block reads as if it were alone, its first block short."""
    start = 2 * PERIOD + 1
    segments = np.broadcast_to(np.where(np.arange(BLOCKS * PERIOD) < start, 1, 2), (BATCH, BLOCKS * PERIOD))
    alone = np.where(segments == 2, segments, 0)
    assert np.abs(ours(1, segments=segments)[:, start:] - ours(1)[:, start:]).max() > 1e-2
    close(ours(1, segments=segments)[:, start:], ours(1, segments=alone)[:, start:], 1e-6)
    assert (ours(1, segments=alone)[:, :start] == 0).all()  # padding sees no key
