"""The scalar-decay recurrence: both kernels against a float64 oracle in value and all gradients, over one table."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.ops.scalar_decay import FEW_TOKENS, scalar_decay
from jaxlm.ops.segments import rows_of
from pallas_kernels import ssd
from pallas_kernels.block_sparse_attention.call import aimed_at
from pallas_kernels.ssd import call, core, reference, tpu, triton
from tests.kernels.recurrences import (
    BACKENDS,
    SEGMENTS,
    Drawn,
    agree,
    gradients_are_finite_differences,
    run,
    some_epochs,
)  # fmt: skip
from tests.kernels.test_tpu import RACES, found_races
from tests.tiny import slow

# By the dtype of the case, then of what is compared: products of bfloat16 round what is float32 behind them, too.
BOUNDS = {"float32": {"float32": 2e-6}, "bfloat16": {"float32": 4e-3, "bfloat16": 1e-2}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table. ``decays`` are the powers of ten between which log decays are drawn."""

    length: int
    batch: int = 1
    heads: int = 2
    groups: int = 2
    width: int = 12
    value_width: int = 10
    documents: bool = False
    state: bool = True
    decays: tuple[float, float] = (-2.0, 0.0)
    dtype: str = "float32"


CASES = {
    "odd, grouped, documents": Case(150, batch=2, groups=1, documents=True),
    "decays of all strengths": Case(140, heads=1, groups=1, decays=(-7.0, 2.5)),
}
LONG_CASES = {
    "one token": Case(1, state=False),
    "bfloat16": Case(130, heads=1, groups=1, dtype="bfloat16"),
    "few tokens": Case(70, documents=True),
    "whole chunks, no state": Case(256, heads=4, state=False),
    "many heads of a group": Case(70, heads=12, groups=1, documents=True),
    "several groups of heads": Case(70, heads=8, groups=4, width=16, value_width=8),
    "wide values": Case(70, heads=1, groups=1, value_width=130),
    "wide keys": Case(70, heads=1, groups=1, width=120),
    "strong decays, documents": Case(300, documents=True, decays=(0.0, 2.5)),
    "bfloat16, grouped, documents": Case(200, heads=4, groups=1, documents=True, dtype="bfloat16"),
}
TABLE = [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG_CASES)]


@functools.cache
def draw(name: str) -> Drawn:
    case, rng = {**CASES, **LONG_CASES}[name], np.random.default_rng(len(name))
    batch, length, heads = case.batch, case.length, case.heads
    drawn = lambda *shape: np.asarray(jnp.asarray(rng.standard_normal(shape), case.dtype), np.float64)
    keys = batch, length, case.groups, case.width
    arrays = {"q": drawn(*keys), "k": drawn(*keys) * 0.25, "v": drawn(batch, length, heads, case.value_width)}
    decays = np.float32(-(10 ** rng.uniform(*case.decays, (batch, length, heads))))
    decays[:, length // 2] = 0  # and a token that the state does not notice, as padding is
    arrays["k"][:, length // 2] = 0
    state = (batch, heads, case.width, case.value_width)
    arrays |= {"log_decay": decays.astype(np.float64), "state": np.float32(rng.standard_normal(state)).astype(float)}
    if not case.state:
        arrays["state"] = np.zeros(state)
    epochs = some_epochs(rng, batch, length) if case.documents else None
    dout, dfinal = drawn(*arrays["v"].shape), np.float32(rng.standard_normal(state)).astype(float)
    return Drawn(arrays, ("q", "k", "v"), case.dtype, epochs, dout, dfinal, case.state)


def oracle(drawn: Drawn, q: Any, k: Any, v: Any, log_decay: Any, state: Any) -> dict[str, np.ndarray]:
    """Outputs, the last state and gradients in float64, token by token, forth and back."""
    heads, groups = v.shape[2], q.shape[2]
    q, k = (np.repeat(x, heads // groups, 2) for x in (q, k))
    fade = np.exp(log_decay)
    if drawn.epochs is not None:
        fade = np.where((np.diff(drawn.epochs, axis=1, prepend=0) > 0)[..., None], 0, fade)
    states, out = [state], np.zeros(v.shape)
    for t in range(v.shape[1]):
        new = fade[:, t, :, None, None] * states[-1] + np.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        out[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t], new)
        states.append(new)
    dq, dk, dv, dg, ds = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape), np.zeros(fade.shape), drawn.dfinal
    for t in reversed(range(v.shape[1])):
        dq[:, t] = np.einsum("bhkv,bhv->bhk", states[t + 1], drawn.dout[:, t])
        ds = ds + np.einsum("bhk,bhv->bhkv", q[:, t], drawn.dout[:, t])
        dk[:, t], dv[:, t] = np.einsum("bhkv,bhv->bhk", ds, v[:, t]), np.einsum("bhkv,bhk->bhv", ds, k[:, t])
        dg[:, t] = fade[:, t] * (ds * states[t]).sum((2, 3))
        ds = fade[:, t, :, None, None] * ds
    fold = lambda x: x.reshape(*x.shape[:2], groups, heads // groups, -1).sum(3)
    return {"out": out, "final": states[-1], "q": fold(dq), "k": fold(dk), "v": dv, "log_decay": dg, "state": ds}


@functools.cache
def expected(name: str) -> dict[str, np.ndarray]:
    drawn = draw(name)
    return oracle(drawn, **drawn.arrays)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TABLE)
def test_equals_the_oracle(name: str, backend: str) -> None:
    agree(draw(name), run(draw(name), ssd, backend), expected(name), BOUNDS[draw(name).dtype])


def test_the_oracle_gradients_are_finite_differences() -> None:
    gradients_are_finite_differences(oracle, draw("odd, grouped, documents"))


@pytest.mark.parametrize("name", ["odd, grouped, documents", "decays of all strengths"])
def test_the_reference_is_the_oracle(name: str) -> None:
    drawn = draw(name)
    with jax.enable_x64(True):
        *arrays, state = map(jnp.asarray, drawn.arrays.values())
        out, final = reference.scan(*arrays, drawn.epochs, state)
    np.testing.assert_allclose(out, expected(name)["out"], atol=1e-12)
    np.testing.assert_allclose(final, expected(name)["final"], atol=1e-12)


def test_decays_between_tokens_keep_their_digits_behind_strong_ones() -> None:
    """A running sum in one float32 is 4000 here, and would round what the last tokens differ by to 2e-4."""
    decays = np.float32(np.where(np.arange(64) < 40, -100.0, -1e-2 * np.arange(1, 65)))
    rows = core.tokens_of(jnp.asarray(decays)[None, None], None, 64)[0, 0]
    found = core.pair_decays([x[:, None] for x in rows], [x[None] for x in rows])
    sums = np.cumsum(decays.astype(np.float64))
    want = np.tril(np.exp(np.minimum(sums[:, None] - sums[None], 0)))
    np.testing.assert_allclose(found[40:, 40:], want[40:, 40:], rtol=1e-6)
    np.testing.assert_allclose(rows[core.END, 40:], want[-1, 40:], rtol=1e-6)
    assert (np.asarray(found[40:, :39]) == 0).all()


def test_one_chunk_of_the_core_is_the_recurrence() -> None:
    drawn = draw("decays of all strengths")
    size = drawn.arrays["q"].shape[1]
    q, k, v = (jnp.asarray(drawn.arrays[x][0, :, 0], jnp.float32) for x in "qkv")
    rows = core.tokens_of(jnp.asarray(drawn.arrays["log_decay"]).transpose(0, 2, 1), None, size)[0, 0]
    columns, rows = [x[:, None] for x in rows], [x[None] for x in rows]
    dot = lambda a, b, i, j: jnp.tensordot(a, b, ((i,), (j,)), precision="highest")
    weights = dot(q, k, 1, 1) * core.pair_decays(columns, rows)
    fade, state = rows[core.START][:, -1:], jnp.asarray(drawn.arrays["state"][0, 0], jnp.float32)
    out, final = core.forward(dot, q, k, v, weights, columns[core.START], columns[core.END], fade, state)
    want = expected("decays of all strengths")
    np.testing.assert_allclose(out, want["out"][0, :, 0], atol=2e-6)
    np.testing.assert_allclose(final, want["final"][0, 0], atol=2e-6)


def test_heads_of_one_group_may_need_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parts of dq and dk are then summed when the kernel is done."""
    monkeypatch.setattr(tpu, "HEADS", 1)
    name = "odd, grouped, documents"
    agree(draw(name), run(draw(name), ssd, "tpu"), expected(name), BOUNDS[draw(name).dtype])


def test_no_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """With copies that happen as late as they may; scratch begins as NaN, so nothing is read before it is written."""
    monkeypatch.setattr(tpu, "CHUNK", 32)
    drawn, got = draw("few tokens"), []
    assert not found_races(lambda: got.append(run(drawn, ssd, "tpu", interpret=RACES)))
    agree(drawn, got[0], expected("few tokens"), BOUNDS["float32"])


REQUESTS = {
    "tpu": core.Request("tpu", "bfloat16", 8, 1, 128, 64),
    "triton": core.Request("gpu", "bfloat16", 8, 1, 128, 64),
}


@pytest.mark.parametrize(
    ("module", "change", "words"),
    [
        (tpu, {"platform": "cpu"}, "needs a TPU, not cpu"),
        (tpu, {"dtype": "float16"}, "dtype float16 is not one of float32, bfloat16"),
        (tpu, {"value_width": 512}, "head size 512 is over 256"),
        (triton, {"platform": "tpu"}, "needs a GPU, not tpu"),
        (triton, {"dtype": "float64"}, "dtype float64"),
        (triton, {"width": 256}, "keys 256 wide are over 128, of bfloat16"),
        (triton, {"dtype": "float32"}, "keys 128 wide are over 64, of float32"),
    ],
)
def test_refusals_have_their_reason(module: Any, change: dict[str, Any], words: str) -> None:
    request = REQUESTS[module.__name__.rpartition(".")[2]]
    assert module.supports(request) is None
    reason = module.supports(dataclasses.replace(request, **change))
    assert reason and words in reason and "\n" not in reason


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kernel_states_its_cost(backend: str) -> None:
    module = importlib.import_module(f"pallas_kernels.ssd.{backend}")
    q, v = jnp.zeros((1, 256, 1, 64)), jnp.zeros((1, 256, 2, 64))
    loss = lambda q, v: call.scan(q, q, v, v[..., 0], backend=module, interpret=True)[0].sum()
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(q, v))
    assert text.count("cost_estimate=CostEstimate(flops=") == text.count("pallas_call[") >= 2


# As an implementation of `jaxlm.ops.scalar_decay`.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "decay", [*slow((None,)), -np.asarray([0.01, 0.7], np.float32)], ids=["no decay", "decay by head"]
)
def test_serves_the_library(backend: str, decay: Any) -> None:
    """Padding, which holds no zeros, packed documents, and decays that are not of tokens."""
    rng, length = np.random.default_rng(0), SEGMENTS.shape[1]
    draw_ = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    arrays = draw_(1, length, 1, 4), draw_(1, length, 1, 4), draw_(1, length, 2, 3), draw_(1, 2, 4, 3)
    rows = rows_of(jnp.asarray(SEGMENTS), jnp.ones(1, jnp.int32))

    def loss(q: Any, k: Any, v: Any, state: Any, implementation: str) -> jax.Array:
        out, last = scalar_decay(q, k, v, decay, rows=rows, state=state, implementation=implementation)
        return jnp.sin(out * rows.real[..., None, None]).sum() + jnp.cos(last).sum()

    grads = lambda name: jax.jit(jax.value_and_grad(lambda *x: loss(*x, name), (0, 1, 2, 3)))(*arrays)
    with aimed_at(interpret=True):
        got = grads(backend)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(grads("reference")), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def chosen(platform: str, length: int, dtype: str = "bfloat16", implementation: str | None = None) -> bool:
    """Whether a kernel serves."""
    q, v = jax.ShapeDtypeStruct((1, length, 1, 64), dtype), jax.ShapeDtypeStruct((1, length, 2, 64), dtype)
    run_ = lambda q, v: scalar_decay(q, q, v, implementation=implementation)
    with aimed_at(platform):
        return "pallas_call" in str(jax.make_jaxpr(run_)(q, v))


def test_the_library_takes_a_kernel_where_one_serves() -> None:
    assert chosen("tpu", 64) and chosen("gpu", 64) and not chosen("cpu", 64)
    assert not chosen("tpu", FEW_TOKENS) and chosen("tpu", 1, implementation="tpu")
    assert not chosen("gpu", 64, "float16")
    for name, platform, words in (("tpu", "cpu", "it is for tpu and this is cpu"), ("triton", "gpu", "dtype float16")):
        with pytest.raises(ConfigError, match=f"'{name}' cannot serve this call: {words}") as caught:
            chosen(platform, 64, "float16", name)
        assert "\n" not in str(caught.value)
