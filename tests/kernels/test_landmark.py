"""Landmark attention: every implementation against a float64 oracle in value and all gradients, over one table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.ops.landmark import IMPLEMENTATIONS, landmark_attention
from pallas_kernels.block_sparse_attention.call import aimed_at
from pallas_kernels.landmark_attention import reference

INTERPRETED = ("tpu", "triton")


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table; ``keys`` 0 for as many as queries. ``period`` 0 puts landmarks anywhere."""

    length: int
    period: int
    keys: int = 0
    batch: int = 2
    heads: int = 2
    groups: int = 2
    width: int = 8
    value_width: int = 8
    segments: bool = False
    slots: bool = False
    soft_cap: float = 0.0
    size: float = 2.0
    dtype: str = "float32"


CASES = {
    "last block incomplete": Case(23, 5),
    "one token": Case(1, 3),
    "shortest period": Case(11, 2),
    "one block": Case(7, 9),
    "several tiles, grouped": Case(300, 7, batch=1, groups=1),
    "period longer than a tile": Case(290, 131, batch=1, heads=1, groups=1),
    "values of another width": Case(20, 4, value_width=6),
    "documents and padding": Case(37, 6, heads=4, segments=True),
    "last queries of a row": Case(5, 4, keys=18),
    "queries anywhere": Case(9, 4, keys=30, slots=True, segments=True, groups=1),
    "soft cap": Case(21, 4, soft_cap=1.5),
    "one token wins": Case(33, 8, size=12.0),  # the logits of a block lie far below another's
    "bfloat16": Case(33, 8, dtype="bfloat16", size=1.0),
    "landmarks anywhere": Case(26, 0),
    "landmarks anywhere, documents": Case(26, 0, segments=True, groups=1),
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    q: jax.Array
    k: jax.Array
    v: jax.Array
    dout: jax.Array
    dlse: jax.Array
    landmarks: np.ndarray  # [B, Lk]
    slots: np.ndarray | None
    segments: tuple[np.ndarray, np.ndarray] | None


@functools.cache
def draw(name: str) -> Drawn:
    case, rng = CASES[name], np.random.default_rng(len(name))
    keys = case.keys or case.length

    def normal(*shape: int, size: float = 1.0) -> jax.Array:
        return jnp.asarray(size * rng.standard_normal(shape), case.dtype)

    slots, segments = None, None
    if case.slots:
        slots = np.sort(np.argsort(rng.random((case.batch, keys)), -1)[:, : case.length], -1).astype(np.int32)
    if case.segments:  # three documents a row, some tokens of which are padding
        ids = np.sort(rng.integers(1, 4, (case.batch, keys)), -1) * (rng.random((case.batch, keys)) < 0.9)
        ids = ids.astype(np.int32)
        at = np.arange(keys - case.length, keys)[None] if slots is None else slots
        segments = np.take_along_axis(ids, np.broadcast_to(at, (case.batch, case.length)), 1), ids
    landmarks = (np.arange(keys) + 1) % case.period == 0 if case.period else rng.random((case.batch, keys)) < 0.3
    return Drawn(
        normal(case.batch, case.length, case.heads, case.width, size=case.size),
        normal(case.batch, keys, case.groups, case.width),
        normal(case.batch, keys, case.groups, case.value_width),
        normal(case.batch, case.length, case.heads, case.value_width),
        jnp.asarray(rng.standard_normal((case.batch, case.heads, case.length)), jnp.float32),
        np.broadcast_to(landmarks, (case.batch, keys)),
        slots,
        segments,
    )


def oracle(case: Case, drawn: Drawn, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
    """Output, log-sum-exp and gradients in float64, query by query as the definition reads."""
    q, k, v, dout, dlse = (np.asarray(x, np.float64) for x in (q, k, v, drawn.dout, drawn.dlse))
    out, lse = np.zeros(dout.shape), np.full(dlse.shape, -np.inf)
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for b, i, h in np.ndindex(*q.shape[:3]):
        g = h // (case.heads // case.groups)
        slot = k.shape[1] - q.shape[1] + i if drawn.slots is None else drawn.slots[b, i]
        mark = drawn.landmarks[b]
        block = np.cumsum(mark) - mark
        seen = np.arange(k.shape[1]) <= slot
        if drawn.segments is not None:
            seen &= (drawn.segments[1][b] == drawn.segments[0][b, i]) & (drawn.segments[0][b, i] != 0)
        own = seen & ~mark & (block == block[slot])
        marks = seen & mark & (block < block[slot])
        if not (own | marks).any():
            continue
        raw = k[b, :, g] @ q[b, i, h] * case.width**-0.5
        cap = case.soft_cap
        s, slope = (cap * np.tanh(raw / cap), 1 - np.tanh(raw / cap) ** 2) if cap else (raw, np.ones_like(raw))
        top = s[own | marks].max()
        w = np.where(own | marks, np.exp(s - top), 0.0)
        lse[b, h, i] = np.log(w.sum()) + top
        w /= w.sum()
        dp = v[b, :, g] @ dout[b, i, h]
        p, ds = np.where(own, w, 0.0), np.zeros_like(w)
        shares = {}
        for m in np.flatnonzero(marks):
            tokens = np.flatnonzero(seen & ~mark & (block == block[m]))
            shares[m] = tokens, np.exp(s[tokens] - s[tokens].max(initial=-np.inf))
            shares[m][1][:] /= shares[m][1].sum()
            p[tokens] = w[m] * shares[m][1]
        out[b, i, h] = p @ v[b, :, g]
        delta = (p * dp).sum() - dlse[b, h, i]
        ds[own] = (w * (dp - delta))[own]
        for m, (tokens, a) in shares.items():
            mean = (a * dp[tokens]).sum()
            ds[tokens], ds[m] = w[m] * a * (dp[tokens] - mean), w[m] * (mean - delta)
        ds *= slope * case.width**-0.5
        dv[b, :, g] += p[:, None] * dout[b, i, h]
        dq[b, i, h] = ds @ k[b, :, g]
        dk[b, :, g] += ds[:, None] * q[b, i, h]
    return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


@functools.cache
def expected(name: str) -> dict[str, np.ndarray]:
    drawn = draw(name)
    return oracle(CASES[name], drawn, drawn.q, drawn.k, drawn.v)


def run(name: str, implementation: str) -> dict[str, jax.Array]:
    case, drawn = CASES[name], draw(name)
    options = {"period": case.period} if case.period else {"landmarks": drawn.landmarks}
    options |= {"slots": drawn.slots, "segment_ids": drawn.segments}

    def both(q, k, v):
        return landmark_attention(
            q, k, v, **options, soft_cap=case.soft_cap, implementation=implementation, return_lse=True
        )

    def whole(q, k, v):
        (out, lse), pull = jax.vjp(both, q, k, v)
        return out, lse, *pull((drawn.dout, jnp.where(jnp.isfinite(lse), drawn.dlse, 0.0)))

    with aimed_at(interpret=True) if implementation in INTERPRETED else contextlib.nullcontext():
        return dict(zip(("out", "lse", "dq", "dk", "dv"), jax.jit(whole)(drawn.q, drawn.k, drawn.v), strict=True))


QUICK = (
    "last block incomplete",
    "one token",
    "several tiles, grouped",
    "documents and padding",
    "queries anywhere",
    "soft cap",
    "bfloat16",
    "landmarks anywhere",
)


def table() -> Iterator[Any]:
    """Every case for every implementation; in the default suite one of the interpreted two has them all."""
    for name in CASES:
        for one in IMPLEMENTATIONS:
            quick = one != "triton" or name in QUICK
            yield pytest.param(name, one, marks=() if quick else pytest.mark.slow, id=f"{name}-{one}")


@pytest.mark.parametrize(("name", "implementation"), list(table()))
def test_equals_the_oracle(name: str, implementation: str) -> None:
    case = CASES[name]
    if not case.period and implementation != "reference":
        with pytest.raises(ConfigError, match="no period"):
            run(name, implementation)
        return
    got, want = run(name, implementation), expected(name)
    bound = {"float32": 2e-5, "bfloat16": 2e-2}[case.dtype]
    np.testing.assert_array_equal(np.isfinite(got["lse"]), np.isfinite(want["lse"]))
    for key, value in want.items():
        value = np.where(np.isfinite(value), value, 0.0)
        ours = np.asarray(got[key], np.float64)
        ours = np.where(np.isfinite(want[key]), ours, 0.0)
        assert key == "lse" or got[key].dtype == case.dtype
        assert np.abs(ours - value).max() <= bound * max(np.abs(value).max(), 1e-3), key


@pytest.mark.parametrize("name", ["soft cap", "landmarks anywhere, documents"])
def test_the_oracle_gradients_are_finite_differences(name: str) -> None:
    case, drawn, rng, step = CASES[name], draw(name), np.random.default_rng(0), 1e-6
    arrays = {x: np.asarray(getattr(drawn, x), np.float64) for x in "qkv"}

    def loss(**arrays: np.ndarray) -> float:
        found = oracle(case, drawn, **arrays)
        lse = np.where(np.isfinite(found["lse"]), found["lse"], 0.0)
        return (found["out"] * np.asarray(drawn.dout)).sum() + (lse * np.asarray(drawn.dlse)).sum()

    for key, x in arrays.items():
        way = rng.standard_normal(x.shape)
        ahead, behind = (loss(**{**arrays, key: x + sign * step * way}) for sign in (1, -1))
        slope = (expected(name)[f"d{key}"] * way).sum()
        assert abs((ahead - behind) / (2 * step) - slope) <= 1e-6 * max(1.0, abs(slope)), key


def test_a_query_that_sees_no_key_gives_zero_and_the_gradients_are_finite() -> None:
    want = expected("documents and padding")
    assert np.isneginf(want["lse"]).any()  # the table has such queries
    for implementation in IMPLEMENTATIONS:
        if implementation not in INTERPRETED:
            got = run("documents and padding", implementation)
            nothing = np.isneginf(want["lse"]).transpose(0, 2, 1)
            assert (np.asarray(got["out"])[nothing] == 0).all()
            assert all(np.isfinite(got[key]).all() for key in ("out", "dq", "dk", "dv"))


def test_there_may_be_any_number_of_blocks() -> None:
    """The public reference merges blocks past 16 or 64 into one; here a row has 150."""
    length, rng = 300, np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((1, 1, length, length)), jnp.float32)
    marks = jnp.arange(length)[None] % 2 == 1
    weights, _ = reference.grouped_softmax(logits, marks, jnp.arange(length)[None])
    row = np.exp(np.asarray(logits[0, 0, -1], np.float64))
    outer = np.concatenate((row[1:-2:2], row[-2:-1]))  # landmarks of earlier blocks, and the own block's token
    np.testing.assert_allclose(weights[0, 0, -1, ::2], outer / outer.sum(), rtol=1e-5)
    assert (weights[0, 0, -1, 1::2] == 0).all()


def test_memory_grows_with_the_length_and_not_its_square() -> None:
    def temporary(length: int) -> int:
        x = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)
        loss = lambda q, k, v: landmark_attention(q, k, v, period=64, implementation="xla").sum()
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(16384) < 2.2 * temporary(8192) < 0.1 * 8192**2 * 4


Q = jnp.zeros((2, 6, 4, 8))
BAD = [
    ((Q, Q[:, :, :3], Q[:, :, :3]), {"period": 3}, "4 query heads are not divisible by 3"),
    ((Q, Q, Q[:, :5]), {"period": 3}, r"\[B,Lk,G,V\]"),
    ((Q, Q, Q.astype(int)), {"period": 3}, "v has dtype int32"),
    ((Q, Q, Q), {}, "either the period"),
    ((Q, Q, Q), {"period": 3, "landmarks": jnp.ones((2, 6), bool)}, "either the period"),
    ((Q, Q, Q), {"period": 1}, "at least 2"),
    ((Q, Q[:, :4], Q[:, :4]), {"period": 3}, "slots"),
    ((Q, Q, Q), {"period": 3, "slots": jnp.zeros((3, 6), jnp.int32)}, r"slots \(3, 6\)"),
    ((Q, Q, Q), {"period": 3, "segment_ids": (jnp.ones((2, 6)), jnp.ones((2, 5)))}, "segment_ids of keys"),
    ((Q, Q, Q), {"period": 3, "implementation": "xls"}, "did you mean 'xla'"),
    ((Q, Q, Q), {"landmarks": jnp.ones((2, 6), bool), "implementation": "xla"}, "no period"),
]


@pytest.mark.parametrize(("arrays", "options", "words"), BAD, ids=[words for _, _, words in BAD])
def test_bad_input_is_one_clear_line(arrays, options, words) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        landmark_attention(*arrays, **options)
    assert "\n" not in str(caught.value)
