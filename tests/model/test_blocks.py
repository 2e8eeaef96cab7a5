"""One block: placements, residual forms, feed-forwards and norms against float64 numpy; dropout."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import ffn, norm
from jaxlm.core import registry
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Context, Dims
from jaxlm.model import decoder, layers
from jaxlm.model.spec import Block
from jaxlm.ops.activation import ACTIVATIONS
from tests.tiny import close, draw_params, params_of, tiny, tokens_of

X = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
CONTEXT = Context(positions=jnp.arange(5)[None])
erf = np.vectorize(math.erf)
ORACLES = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "identity": lambda x: x,
}


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def rms(x, scale, eps=1e-6):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * scale


def layer(x, scale, bias=0.0, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * scale + bias


def test_norms():
    x = X * 3 + 1
    for name, args, oracle in [
        ("rms", {}, lambda p: rms(x, p["scale"])),
        ("rms", {"offset": 1.0, "eps": 0.1}, lambda p: rms(x, 1 + p["scale"], 0.1)),
        ("layer", {}, lambda p: layer(x, p["scale"], p["bias"])),
        ("layer", {"bias": False, "eps": 0.1}, lambda p: layer(x, p["scale"], eps=0.1)),
        ("layer", {"offset": 1.0}, lambda p: layer(x, 1 + p["scale"], p["bias"])),
        ("layer", {"gain": False, "bias": False}, lambda p: layer(x, 1.0)),
    ]:
        method = registry.get("norm", name)(**args)
        p = draw_params(method.params(16))
        close(method(p, x), oracle(wide(p)), 1e-6)


@pytest.mark.parametrize("name", norm.METHODS)
def test_every_norm_at_rest(name):
    """Any scale of the input gives rows of mean square 1; the result has the input's dtype, its sums are float32."""
    method = registry.get("norm", name)()
    p = {path: spec.value(jax.random.key(0)) for path, spec in method.params(16).items()}
    for factor in (1.0, 1e3):
        y = np.asarray(method(p, X * factor))
        np.testing.assert_allclose(np.mean(y**2, -1), 1, rtol=2e-3)
    low = method(p, jnp.asarray(X * 300, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    close(low.astype(jnp.float32), method(p, jnp.asarray(X * 300, jnp.bfloat16).astype(jnp.float32)), 4e-3)
    assert np.isfinite(method(p, np.zeros_like(X))).all()


def test_the_oracles_know_every_activation():
    assert ORACLES.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("name", [name for name in ffn.METHODS if name != "moe"])  # which has its own tests
def test_every_feed_forward(name, bias):
    for activation, act in ORACLES.items():
        method = registry.get("ffn", name)(hidden=6, activation=activation, bias=bias)
        p = draw_params(method.params(Dims(width=16)))
        assert {path: a.shape for path, a in p.items() if "bias" in path}.keys() == (
            {"in_bias", "out_bias"} if bias else set()
        )
        w = wide(p)
        hidden = np.tensordot(X.astype(np.float64), w["in"], 1) + w.get("in_bias", 0.0)
        hidden = act(hidden[..., 0]) * hidden[..., 1] if hidden.ndim == 4 else act(hidden)
        close(method(p, X, CONTEXT)[0], hidden @ w["out"] + w.get("out_bias", 0.0), 2e-6)
    sizes = registry.get("ffn", name)(expansion=1.5).params(Dims(width=16))
    assert sizes["out"].shape == (24, 16)


def test_clamped_glu():
    method = registry.get("ffn", "glu")(hidden=6, activation="quick_gelu", limit=0.5, up_offset=1.0)
    p = draw_params(method.params(Dims(width=16)))
    w = wide(p)
    gate, up = np.moveaxis(np.tensordot(X.astype(np.float64), w["in"], 1), -1, 0)
    assert gate.max() > 0.5 > up.min() and up.max() > 0.5
    hidden = ORACLES["quick_gelu"](np.minimum(gate, 0.5)) * (np.clip(up, -0.5, 0.5) + 1)
    close(method(p, X, CONTEXT)[0], hidden @ w["out"], 2e-6)
    with pytest.raises(ConfigError, match=r"Glu\.limit"):
        registry.get("ffn", "glu")(limit=-1.0)


# (x, n: a norm by its name, the mixer, the ffn, the residual multiplier) -> y, as the papers write it.
FORMULAE = {
    ("pre", "serial"): lambda x, n, mixer, ffn, m: (
        (y := x + m * mixer(n("mixer_norm", x))) + m * ffn(n("ffn_norm", y)),
    ),
    ("post", "serial"): lambda x, n, mixer, ffn, m: (
        n("ffn_norm", (y := n("mixer_norm", x + m * mixer(x))) + m * ffn(y)),
    ),
    ("sandwich", "serial"): lambda x, n, mixer, ffn, m: (
        (y := x + m * n("mixer_out_norm", mixer(n("mixer_norm", x)))) + m * n("ffn_out_norm", ffn(n("ffn_norm", y))),
    ),
    ("output", "serial"): lambda x, n, mixer, ffn, m: (
        (y := x + m * n("mixer_out_norm", mixer(x))) + m * n("ffn_out_norm", ffn(y)),
    ),
    ("none", "serial"): lambda x, n, mixer, ffn, m: ((y := x + m * mixer(x)) + m * ffn(y),),
    ("normed", "serial"): lambda x, n, mixer, ffn, m: (
        (z := n("ffn_norm", (y := n("mixer_norm", x)) + m * mixer(y))) + m * ffn(z),
    ),
    ("pre", "parallel"): lambda x, n, mixer, ffn, m: (x + m * mixer(n("mixer_norm", x)) + m * ffn(n("ffn_norm", x)),),
    ("pre", "parallel_shared"): lambda x, n, mixer, ffn, m: (x + m * mixer(y := n("mixer_norm", x)) + m * ffn(y),),
}


@pytest.mark.parametrize("placement, residual", FORMULAE)
def test_placements_and_residual_forms(placement, residual):
    block = Block(
        mixer={"name": "attention", "args": {"heads": 2}},
        ffn={"name": "glu", "args": {"hidden": 8}},
        norm="layer",
        placement=placement,
        residual=residual,
    )
    p = draw_params(layers.block_specs(block, Dims(width=16)))
    used = {"mixer", "ffn"}

    def normed(name, x):
        used.add(name)
        return block.norm(p[name], x)

    mixer = lambda x: block.mixer(p["mixer"], x, CONTEXT)[0]
    ffn = lambda x: block.ffn(p["ffn"], x, CONTEXT)[0]
    (expected,) = FORMULAE[placement, residual](jnp.asarray(X), normed, mixer, ffn, 0.6)
    ours, state, aux = decoder.apply_block(block, p, jnp.asarray(X), CONTEXT, None, rate=0.0, multiplier=0.6)
    assert state is None and aux == {} and used == p.keys()
    close(ours, expected, 2e-6)


def test_forms_that_do_not_go_together():
    for fields in [
        {"residual": "parallel", "placement": "post"},
        {"residual": "parallel_shared", "placement": "sandwich"},
        {"residual": "parallel", "ffn": None},
        {"residual": "paralel"},
        {"placement": "peri"},
        {"placement": "normed", "residual": "parallel"},
    ]:
        with pytest.raises(ConfigError) as caught:
            Block(**fields)
        assert "\n" not in str(caught.value) and "Block." in str(caught.value)


class TestDropout:
    layers = tiny(repeats=2).layers + tiny(repeats=1).layers
    spec = tiny(layers=layers, dropout=0.4)
    tokens = tokens_of(2, 6)

    def logits(self, seed, train=True, unstacked=False):
        params = params_of(self.spec)
        params = decoder.unstack(params) if unstacked else params
        run = jax.jit(lambda p, key: decoder.forward(self.spec, p, self.tokens, train=train, rng=key).logits)
        return np.asarray(run(params, jax.random.key(seed)))

    def test_a_function_of_the_key_and_off_outside_training(self):
        one = self.logits(0)
        np.testing.assert_array_equal(one, self.logits(0))
        assert np.abs(one - self.logits(1)).max() > 0.01
        plain = decoder.forward(tiny(layers=self.layers), params_of(self.spec), self.tokens).logits
        close(self.logits(0, train=False), plain)
        # Every layer has its own noise, the same whether layers are scanned or not.
        close(self.logits(0, unstacked=True), one)

    def test_it_keeps_the_mean_and_its_rate(self):
        x = jnp.full((64, 1000), 2.0)
        out = np.asarray(layers.dropout(x, 0.4, jax.random.key(0), True))
        assert set(np.unique(out)) == {0.0, np.float32(2 / 0.6)}
        assert (out == 0).mean() == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / out.size))
        assert layers.dropout(x, 0.4, None, False) is x and layers.dropout(x, 0.0, None, True) is x
        low = layers.dropout(x.astype(jnp.bfloat16), 0.4, jax.random.key(0), True)
        assert low.dtype == jnp.bfloat16

    def test_training_without_a_key_is_an_error(self):
        with pytest.raises(ConfigError, match="rngs="):
            decoder.forward(self.spec, params_of(self.spec), self.tokens, train=True)
