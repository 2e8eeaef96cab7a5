"""Attention: every back end is the reference in value and gradient, over a table of cases; empty rows; `merge`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxlm.attention.mask import Bidirectional, Causal, Window
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import TileBias
from jaxlm.ops.attention import attention, merge


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distance(TileBias):
    """A learned slope per head times the distance."""

    slopes: jax.Array

    def tile(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        far = (pos_q[:, :, None] - pos_k[:, None, :]).astype(jnp.float32)
        return self.slopes[:, None, None] * far[:, None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table; ``keys`` 0 for as many as queries, which is then the self-attention of a training step."""

    length: int
    keys: int = 0
    heads: int = 4
    groups: int = 4
    width: int = 8
    mask: object = Causal()
    segments: bool = False
    bias: bool = False
    soft_cap: float = 0.0
    ordered: bool = True
    dtype: str = "float32"


CASES = {
    "one block": Case(33),
    "one token": Case(1),
    "two blocks, odd": Case(131),
    "four blocks, odd": Case(261, heads=2, groups=2),
    "grouped": Case(130, groups=2),
    "multi-query": Case(129, groups=1),
    "unordered": Case(130, ordered=False),
    "bidirectional": Case(130, mask=Bidirectional()),
    "window": Case(135, mask=Window(size=20)),
    "segments": Case(140, segments=True, groups=2),
    "bias": Case(133, bias=True, groups=2),
    "soft cap": Case(133, soft_cap=2.0),
    "everything": Case(137, groups=2, mask=Window(size=50), segments=True, bias=True, soft_cap=3.0),
    "cached step": Case(3, keys=37, groups=2),
    "cached step, everything": Case(5, keys=41, groups=2, segments=True, bias=True, soft_cap=3.0),
    "bfloat16": Case(133, groups=2, dtype="bfloat16"),
    "bfloat16, everything": Case(133, groups=2, segments=True, bias=True, soft_cap=3.0, dtype="bfloat16"),
}


def draw(case: Case, seed: int = 0):
    """Arrays of a case: (q, k, v, slopes), the other arguments, and cotangents of the output and log-sum-exp."""
    rng = np.random.default_rng(seed)
    batch, keys = 2, case.keys or case.length
    shapes = [(batch, case.length, case.heads, case.width)] + [(batch, keys, case.groups, case.width)] * 2
    q, k, v = (jnp.asarray(rng.standard_normal(shape) * 1.5, case.dtype) for shape in shapes)
    slopes = jnp.asarray(-rng.uniform(0.05, 0.5, case.heads), jnp.float32)
    segments = None
    if case.segments:  # documents of many lengths, padding at the end of the first row and the start of the second
        ids = np.sort(rng.integers(1, 4, (batch, keys)), 1).astype(np.int32)
        ids[0, keys - keys // 5 :] = 0
        ids[1, : keys // 6] = 0
        segments = jnp.asarray(ids[:, keys - case.length :]), jnp.asarray(ids)
    options = {
        "mask": case.mask,
        "segment_ids": segments,
        "soft_cap": case.soft_cap,
        "ordered": case.ordered if not case.keys else False,
    }
    ct = jnp.asarray(rng.standard_normal((batch, case.length, case.heads, case.width)), case.dtype)
    ct_lse = jnp.asarray(rng.standard_normal((batch, case.heads, case.length)), jnp.float32)
    return (q, k, v, slopes), options, (ct, ct_lse)


def run(implementation: str, case: Case, arrays, options, cotangents):
    """(output, log-sum-exp), and the gradients of q, k, v and the bias' slopes under cotangents of both outputs."""

    def both(q, k, v, slopes):
        bias = Distance(slopes) if case.bias else None
        out, lse = attention(q, k, v, bias=bias, implementation=implementation, return_lse=True, **options)
        # -inf has no use for a cotangent; its finite neighbours do
        return out, jnp.where(jnp.isfinite(lse), lse, 0.0), lse

    def values(*arrays):
        out, _, lse = both(*arrays)
        return out, lse

    def gradients(*arrays):
        ct, ct_lse = cotangents
        _, pull = jax.vjp(lambda *a: both(*a)[:2], *arrays)
        return pull((ct, ct_lse))

    return jax.jit(values)(*arrays), jax.jit(gradients)(*arrays)


def close(got, want, tolerance: float) -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    error = np.linalg.norm(got[finite] - want[finite])
    assert error <= tolerance * max(np.linalg.norm(want[finite]), 1e-3), (error, np.linalg.norm(want[finite]))


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str) -> None:
    case = CASES[name]
    arrays, options, cotangents = draw(case)
    (out, lse), grads = run("xla", case, arrays, options, cotangents)
    (want_out, want_lse), want = run("reference", case, arrays, options, cotangents)
    low = case.dtype == "bfloat16"
    assert out.dtype == want_out.dtype and lse.dtype == jnp.float32
    close(out, want_out, 6e-3 if low else 2e-6)
    close(lse, want_lse, 6e-3 if low else 2e-6)
    for got, expected, array in zip(grads, want, arrays, strict=True):
        assert got.dtype == array.dtype and got.shape == array.shape
        close(got, expected, 1e-2 if low else 5e-6)


def squares(f):
    """The sum of squares of what ``f`` returns, a log-sum-exp of -inf left out."""
    return lambda *arrays: sum((jnp.where(jnp.isfinite(x), x, 0.0) ** 2).sum() for x in f(*arrays))


def oracle(case: Case, arrays, options) -> tuple[np.ndarray, np.ndarray]:
    """Attention by a loop over queries in float64, positions 0, 1, ... with the last query on the last key."""
    q, k, v, slopes = (np.asarray(a, np.float64) for a in arrays)
    batch, length, heads, width = q.shape
    keys, groups = k.shape[1:3]
    out, lse = np.zeros((batch, length, heads, width)), np.full((batch, heads, length), -np.inf)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                at = keys - length + i
                seen = np.array(options["mask"].pointwise(np.int32(at), np.arange(keys, dtype=np.int32)))
                if options["segment_ids"] is not None:
                    own, theirs = (np.asarray(s[b]) for s in options["segment_ids"])
                    seen &= (theirs == own[i]) & (theirs != 0)
                if not seen.any():
                    continue
                g = h // (heads // groups)
                x = k[b, :, g] @ q[b, i, h] / np.sqrt(width)
                if case.soft_cap:
                    x = case.soft_cap * np.tanh(x / case.soft_cap)
                if case.bias:
                    x = x + slopes[h] * (at - np.arange(keys))
                x = x[seen]
                lse[b, h, i] = np.log(np.exp(x - x.max()).sum()) + x.max()
                out[b, i, h] = np.exp(x - lse[b, h, i]) @ v[b, seen, g]
    return out, lse


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("name", ["everything", "cached step, everything", "bidirectional", "four blocks, odd"])
def test_equals_a_float64_loop(name: str, implementation: str) -> None:
    case = dataclasses.replace(CASES[name], heads=2, groups=1)
    arrays, options, cotangents = draw(case)
    (out, lse), _ = run(implementation, case, arrays, options, cotangents)
    want_out, want_lse = oracle(case, arrays, options)
    close(out, want_out, 2e-6)
    close(lse, want_lse, 2e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_gradients_are_finite_differences(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pallas_kernels.attention.xla.SHORTEST_BLOCK", 2)  # three blocks of seven tokens
    case = Case(7, heads=2, groups=1, width=3, segments=True, bias=True, soft_cap=3.0)
    with jax.enable_x64(True):
        arrays, options, _ = draw(case)
        arrays = [jnp.asarray(a, jnp.float64) for a in arrays]

        def both(q, k, v, slopes):
            out, lse = attention(
                q, k, v, bias=Distance(slopes), implementation=implementation, return_lse=True, **options
            )
            return out, jnp.where(jnp.isfinite(lse), lse, 0.0)

        # float32 inside, by contract, whatever comes in
        check_grads(jax.jit(both), arrays, order=1, modes=["rev"], eps=1e-3, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("length", [9, 150])
def test_a_query_that_sees_no_key(implementation: str, length: int) -> None:
    q, k, v = (jax.random.normal(key, (2, length, 2, 4)) for key in jax.random.split(jax.random.key(0), 3))
    segments = jnp.ones((2, length), jnp.int32).at[0, :3].set(0).at[1].set(0)

    def both(q, k, v):
        return attention(
            q, k, v, mask=Causal(), segment_ids=(segments, segments), implementation=implementation, return_lse=True
        )

    out, lse = jax.jit(both)(q, k, v)
    empty = segments == 0
    assert (out[empty] == 0).all()
    assert (lse.transpose(0, 2, 1)[empty] == -jnp.inf).all()
    assert np.isfinite(lse.transpose(0, 2, 1)[~empty]).all()
    for g in jax.jit(jax.grad(squares(both), (0, 1, 2)))(q, k, v):
        assert np.isfinite(g).all() and (g[empty] == 0).all() and (g[~empty] != 0).any()


def test_large_logits_do_not_overflow() -> None:
    q, k, v = (100 * jax.random.normal(key, (1, 130, 2, 8)) for key in jax.random.split(jax.random.key(0), 3))
    fast, slow = (attention(q, k, v, mask=Causal(), implementation=name) for name in ("xla", "reference"))
    close(fast, slow, 1e-4)  # of logits of size 1e5, one float32 step is 0.008


def test_only_visible_keys_have_gradients() -> None:
    q, k, v = (jax.random.normal(key, (1, 130, 2, 8)) for key in jax.random.split(jax.random.key(0), 3))
    first = lambda q, k, v: attention(q, k, v, mask=Causal())[:, :70].sum()
    for g in jax.jit(jax.grad(first, (1, 2)))(q, k, v):
        assert (g[:, 70:] == 0).all() and (g[:, :70] != 0).any()


def test_second_derivatives_and_vmap() -> None:
    q, k, v = (jax.random.normal(key, (3, 1, 9, 2, 4)) for key in jax.random.split(jax.random.key(0), 3))

    def curvature(q, k, v, name):
        f = lambda q: (attention(q, k, v, mask=Causal(), implementation=name) ** 2).sum()
        return jax.grad(lambda q: (jax.grad(f)(q) ** 2).sum())(q)

    fast, slow = (
        jax.jit(jax.vmap(lambda *a, name=name: curvature(*a, name)))(q, k, v) for name in ("xla", "reference")
    )
    close(fast, slow, 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_merge_is_attention_over_the_union(implementation: str) -> None:
    q, k, v = (jax.random.normal(key, (2, 40, 2, 8)) for key in jax.random.split(jax.random.key(0), 3))
    segments = jnp.ones((2, 40), jnp.int32).at[:, 7].set(0)  # one row of either part, and of both, is empty

    def part(q, k, v, keys):
        seg_k = jnp.where(keys, segments, 0)
        return attention(
            q, k, v, mask=Causal(), segment_ids=(segments, seg_k), implementation=implementation, return_lse=True
        )

    def merged(q, k, v):
        left = jnp.arange(40) < 11
        return merge(*part(q, k, v, left), *part(q, k, v, ~left))

    def whole(q, k, v):
        return part(q, k, v, jnp.full(40, True))

    for got, want in zip(jax.jit(merged)(q, k, v), jax.jit(whole)(q, k, v), strict=True):
        close(got, want, 2e-6)
    gradients = [jax.jit(jax.grad(squares(f), (0, 1, 2)))(q, k, v) for f in (merged, whole)]
    for got, want in zip(*gradients, strict=True):
        close(got, want, 5e-6)


def test_merge_of_two_empty_sets() -> None:
    o, lse = jnp.zeros((1, 1, 1, 3)), jnp.full((1, 1, 1), -jnp.inf)
    out, total = merge(o, lse, o, lse)
    assert (out == 0).all() and (total == -jnp.inf).all()
    grads = jax.grad(lambda *a: merge(*a)[0].sum(), (0, 1, 2, 3))(o, lse, o, lse)
    assert all(np.isfinite(g).all() for g in grads)


def test_bad_input_is_one_line() -> None:
    q, k = jnp.zeros((1, 4, 3, 8)), jnp.zeros((1, 4, 2, 8))
    with pytest.raises(ConfigError, match="3 query heads are not divisible by 2"):
        attention(q, k, k, mask=Causal())
    with pytest.raises(ConfigError, match="allowed: .*reference"):
        attention(q, q, q, mask=Causal(), implementation="flash")
