"""The selective scan: both kernels against a float64 oracle in value and all gradients, over one table."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.ops.segments import rows_of
from jaxlm.ops.selective_scan import FEW_TOKENS, selective_scan
from pallas_kernels import selective_scan as package
from pallas_kernels.block_sparse_attention.call import aimed_at
from pallas_kernels.selective_scan import call, core, reference, tpu, triton
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

BOUNDS = {"float32": 2e-6, "bfloat16": 4e-3}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table. ``steps`` are the powers of ten between which deltas are drawn; ``dtype`` of u, b and c."""

    length: int
    batch: int = 1
    channels: int = 5
    groups: int = 1
    states: int = 3
    documents: bool = False
    state: bool = True
    steps: tuple[float, float] = (-3.0, -0.5)
    dtype: str = "float32"


CASES = {
    "odd, grouped, documents": Case(35, batch=2, channels=6, groups=2, documents=True),
    "steps of all sizes, chunks": Case(131, steps=(-6.0, 2.0)),
}
LONG_CASES = {
    "one token": Case(1, state=False),
    "few tokens": Case(12, documents=True),
    "bfloat16": Case(20, dtype="bfloat16", states=4),
    "whole chunks, no state": Case(256, channels=128, states=8, state=False),
    "several blocks, grouped": Case(40, channels=600, groups=2, states=16, documents=True),
    "wide blocks": Case(40, channels=1024, states=4),
    "many states": Case(40, channels=40, states=30),
    "bfloat16, documents": Case(200, channels=140, states=16, documents=True, dtype="bfloat16"),
}
TABLE = [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG_CASES)]


@functools.cache
def draw(name: str) -> Drawn:
    case, rng = {**CASES, **LONG_CASES}[name], np.random.default_rng(len(name))
    batch, length, channels = case.batch, case.length, case.channels
    drawn = lambda *shape, dtype=case.dtype: np.asarray(jnp.asarray(rng.standard_normal(shape), dtype), np.float64)
    delta = np.float32(10 ** rng.uniform(*case.steps, (batch, length, channels)))
    delta[:, length // 2] = 0  # a token that the state does not notice, as padding is
    columns, state = (batch, length, case.groups, case.states), (batch, channels, case.states)
    arrays = {
        "u": drawn(batch, length, channels),
        "delta": delta.astype(np.float64),
        "a": -np.exp(drawn(channels, case.states, dtype="float32")).astype(np.float32).astype(np.float64),
        "b": drawn(*columns),
        "c": drawn(*columns),
        "state": drawn(*state, dtype="float32") * case.state,
    }
    epochs = some_epochs(rng, batch, length) if case.documents else None
    dout, dfinal = drawn(batch, length, channels), drawn(*state, dtype="float32")
    return Drawn(arrays, ("u", "b", "c"), case.dtype, epochs, dout, dfinal, case.state)


def oracle(drawn: Drawn, u: Any, delta: Any, a: Any, b: Any, c: Any, state: Any) -> dict[str, np.ndarray]:
    """Outputs, the last state and gradients in float64, token by token, forth and back."""
    groups, share = b.shape[2], u.shape[2] // b.shape[2]
    b, c = (np.repeat(x, share, 2) for x in (b, c))  # [B, L, C, N]
    fade = np.exp(delta[..., None] * a)
    if drawn.epochs is not None:
        fade = np.where((np.diff(drawn.epochs, axis=1, prepend=0) > 0)[..., None, None], 0, fade)
    states, out = [state], np.zeros(u.shape)
    for t in range(u.shape[1]):
        states.append(fade[:, t] * states[-1] + (delta * u)[:, t, :, None] * b[:, t])
        out[:, t] = (states[-1] * c[:, t]).sum(-1)
    db, dc, dpower, dadded = map(np.zeros, (b.shape, c.shape, b.shape, u.shape))
    dh = drawn.dfinal
    for t in reversed(range(u.shape[1])):
        dc[:, t] = states[t + 1] * drawn.dout[:, t, :, None]
        dh = dh + c[:, t] * drawn.dout[:, t, :, None]
        db[:, t], dadded[:, t] = dh * (delta * u)[:, t, :, None], (dh * b[:, t]).sum(-1)
        dpower[:, t] = dh * states[t] * fade[:, t]
        dh = dh * fade[:, t]
    fold = lambda x: x.reshape(*x.shape[:2], groups, share, -1).sum(3)
    return {
        "out": out,
        "final": states[-1],
        "u": dadded * delta,
        "delta": dadded * u + (dpower * a).sum(-1),
        "a": (dpower * delta[..., None]).sum((0, 1)),
        "b": fold(db),
        "c": fold(dc),
        "state": dh,
    }


@functools.cache
def expected(name: str) -> dict[str, np.ndarray]:
    drawn = draw(name)
    return oracle(drawn, **drawn.arrays)


@pytest.mark.parametrize("backend", [*BACKENDS, "xla"])
@pytest.mark.parametrize("name", TABLE)
def test_equals_the_oracle(name: str, backend: str) -> None:
    agree(draw(name), run(draw(name), package, backend), expected(name), BOUNDS)


def test_the_oracle_gradients_are_finite_differences() -> None:
    gradients_are_finite_differences(oracle, draw("odd, grouped, documents"))


@pytest.mark.parametrize("name", ["odd, grouped, documents", "steps of all sizes, chunks"])
def test_the_reference_is_the_oracle(name: str) -> None:
    drawn = draw(name)
    with jax.enable_x64(True):
        *arrays, state = map(jnp.asarray, drawn.arrays.values())
        out, final = reference.scan(*arrays, drawn.epochs, state)
    np.testing.assert_allclose(out, expected(name)["out"], atol=1e-12)
    np.testing.assert_allclose(final, expected(name)["final"], atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_gradients_of_a_token_are_those_of_its_formula(axis: int) -> None:
    """`core.backward` against differentiation of `core.forward`, in either layout of a tile."""
    rng, shape = np.random.default_rng(axis), (4, 6)
    wide = (1, 6) if axis == 0 else (4, 1)  # of a channel; the other of a state
    thin = (4, 1) if axis == 0 else (1, 6)
    draw_ = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    h, a, dh = draw_(shape), -jnp.exp(draw_(shape)), draw_(shape)
    u, delta, dy, b, c, stays = draw_(wide), jnp.exp(draw_(wide)), draw_(wide), draw_(thin), draw_(thin), jnp.float32(1)

    def token(u: Any, delta: Any, a: Any, b: Any, c: Any, h: Any) -> Any:
        new = core.forward(h, u, delta, a, b, stays)
        return (new * c).sum(axis, keepdims=True), new

    want = jax.vjp(token, u, delta, a, b, c, h)[1]((dy, dh))
    found = core.backward(h, u, delta, a, b, c, stays, dy, dh, axis)
    others = lambda x: x.sum(1 - axis, keepdims=True)
    for got, x in zip((*found[:3], others(found.b), others(found.c), found.state), want, strict=True):
        np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-5)


def test_no_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """With copies that happen as late as they may; scratch begins as NaN, so nothing is read before it is written."""
    monkeypatch.setattr(tpu, "CHUNK", 8)
    drawn, got = draw("few tokens"), []
    assert not found_races(lambda: got.append(run(drawn, package, "tpu", interpret=RACES)))
    agree(drawn, got[0], expected("few tokens"), BOUNDS)


REQUESTS = {
    "tpu": core.Request("tpu", ("bfloat16", "float32", "bfloat16", "bfloat16"), 4096, 16),
    "triton": core.Request("gpu", ("bfloat16", "float32", "bfloat16", "bfloat16"), 4096, 16),
}


@pytest.mark.parametrize(
    ("module", "change", "words"),
    [
        (tpu, {"platform": "cpu"}, "needs a TPU, not cpu"),
        (tpu, {"dtypes": ("float16",)}, "dtype float16 is not one of float32, bfloat16"),
        (tpu, {"states": 64}, "states of 64 numbers are over 32"),
        (triton, {"platform": "tpu"}, "needs a GPU, not tpu"),
        (triton, {"dtypes": ("float64",)}, "dtype float64"),
        (triton, {"states": 65}, "states of 65 numbers are over 64"),
    ],
)
def test_refusals_have_their_reason(module: Any, change: dict[str, Any], words: str) -> None:
    request = REQUESTS[module.__name__.rpartition(".")[2]]
    assert module.supports(request) is None
    reason = module.supports(dataclasses.replace(request, **change))
    assert reason and words in reason and "\n" not in reason


def test_nothing_of_every_state_is_in_memory() -> None:
    """No array of a gradient has all tokens, channels and numbers of state."""
    x, a, b = jnp.zeros((1, 512, 128)), jnp.zeros((128, 16)), jnp.zeros((1, 512, 1, 16))
    for module, most in ((tpu, 128), (triton, 16)):
        loss = lambda *arrays, module=module: call.scan(*arrays, backend=module, interpret=True)[0].sum()
        eqns = jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3, 4)))(x, x, a, b, b).eqns
        sizes = [v.aval.size for eqn in eqns for v in eqn.outvars]
        assert max(sizes) <= max(512 * 128 * 16 // most, 512 * 128, 512 * 16 * 128 // 32)
        kernels = [eqn for eqn in eqns if eqn.primitive.name == "pallas_call"]
        assert len(kernels) == 2 and all(eqn.params["cost_estimate"].flops > 0 for eqn in kernels)


# As an implementation of `jaxlm.ops.selective_scan`.


@pytest.mark.parametrize("backend", BACKENDS)
def test_serves_the_library(backend: str) -> None:
    """Padding, which holds no zeros, packed documents, and the skip."""
    rng, length = np.random.default_rng(0), SEGMENTS.shape[1]
    draw_ = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    x, a, b, d, state = draw_(1, length, 4), -jnp.exp(draw_(4, 3)), draw_(1, length, 2, 3), draw_(4), draw_(1, 4, 3)
    rows = rows_of(jnp.asarray(SEGMENTS), jnp.ones(1, jnp.int32))

    def loss(u: Any, a: Any, b: Any, d: Any, state: Any, implementation: str) -> jax.Array:
        delta, c = jnp.exp(u[:, ::-1]), b[:, ::-1]
        y, last = selective_scan(u, delta, a, b, c, d=d, rows=rows, state=state, implementation=implementation)
        return jnp.sin(y * rows.real[..., None]).sum() + jnp.cos(last).sum()

    grads = lambda name: jax.jit(jax.value_and_grad(lambda *x: loss(*x, name), (0, 1, 2, 3, 4)))(x, a, b, d, state)
    with aimed_at(interpret=True):
        got = grads(backend)
    for ours, want in zip(jax.tree.leaves(got), jax.tree.leaves(grads("reference")), strict=True):
        np.testing.assert_allclose(ours, want, atol=2e-5)


def chosen(
    platform: str, length: int, states: int = 16, implementation: str | None = None, fixed: bool = False
) -> bool:
    """Whether a kernel serves; ``fixed`` for b and c of channels and not of tokens."""
    x, b = jnp.zeros((1, length, 8)), jnp.zeros((8, states) if fixed else (1, length, 1, states))
    run_ = lambda x, b: selective_scan(x, x, jnp.zeros((8, states)), b, b, implementation=implementation)
    with aimed_at(platform):
        return "pallas_call" in str(jax.make_jaxpr(run_)(x, b))


def test_the_library_takes_a_kernel_where_one_serves() -> None:
    assert chosen("tpu", 64) and chosen("gpu", 64) and not chosen("cpu", 64)
    assert not chosen("tpu", FEW_TOKENS) and chosen("tpu", 1, implementation="tpu")
    assert not chosen("gpu", 64, states=128) and not chosen("tpu", 64, fixed=True)
    refused = {
        "it is for gpu and this is tpu": ("triton", {}),
        "states of 64 numbers are over 32": ("tpu", {"states": 64}),
    }
    for words, (name, change) in (refused | {"b and c are not both": ("tpu", {"fixed": True})}).items():
        with pytest.raises(ConfigError, match=f"'{name}' cannot serve this call: {words}") as caught:
            chosen("tpu", 64, implementation=name, **change)
        assert "\n" not in str(caught.value)
