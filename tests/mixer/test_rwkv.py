"""RWKV-6, RWKV-7 and GLA against their formulas, a token at a time in float64; initial values; what they refuse."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.core.params import initialize
from jaxlm.core.types import Context, Dims
from jaxlm.mixer.gla import Gla
from jaxlm.mixer.rwkv6 import Rwkv6
from jaxlm.mixer.rwkv7 import Rwkv7
from jaxlm.model.decoder import param_specs
from jaxlm.model.language_model import LanguageModel, init_state
from jaxlm.model.spec import Block, Group, ModelSpec
from tests.tiny import close, draw_params

WIDTH, LENGTH = 16, 21
X = np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def into(x, weight):
    """x [D] times weight [D, ...]."""
    return np.tensordot(x, weight, 1)


def gla(p, x, mixer):
    heads, key, value = len(p["out"]), p["qk"].shape[-1], p["v"].shape[-1]
    state, out = np.zeros((heads, key, value)), []
    for now in x:
        (q, k), v = np.moveaxis(into(now, p["qk"]), 1, 0), into(now, p["v"])
        fade = sigmoid(into(into(now, p["decay_down"]), p["decay_up"]) + p["decay_bias"]) ** (1 / mixer.temperature)
        state = fade[..., None] * state + k[..., None] * v[:, None]
        o = np.einsum("hk,hkv->hv", q, state) / np.sqrt(key)
        o = o / np.sqrt(np.square(o).mean(-1, keepdims=True) + mixer.eps) * p["norm"]["scale"]
        z = into(now, p["z"])
        out.append(np.tensordot(o * z * sigmoid(z), p["out"], 2))
    return np.stack(out)


def head_norm(p, o, eps):
    o = o - o.mean(-1, keepdims=True)
    return o / np.sqrt(np.square(o).mean(-1, keepdims=True) + eps) * p["norm"]["scale"] + p["norm"]["bias"]


def rwkv6(p, x, mixer):
    heads, width = p["bonus"].shape
    state, before, out = np.zeros((heads, width, width)), np.zeros(WIDTH), []
    for now in x:
        d, before = before - now, now
        low = np.tanh(into(now + d * p["mix"], p["mix_down"]))
        mixed = [now + d * (m + a @ up) for m, a, up in zip(p["mixes"], low, p["mix_up"], strict=True)]
        w, k, v, r, g = mixed
        w = np.exp(-np.exp(p["decay"] + into(np.tanh(into(w, p["decay_down"])), p["decay_up"])))
        r, k, v, g = (into(a, p[name]) for a, name in ((r, "r"), (k, "k"), (v, "v"), (g, "g")))
        new = k[..., None] * v[:, None]
        o = np.einsum("hk,hkv->hv", r, state + p["bonus"][..., None] * new)
        state = w[..., None] * state + new
        out.append(np.tensordot(head_norm(p, o, mixer.eps) * g * sigmoid(g), p["out"], 2))
    return np.stack(out)


def rwkv7(p, x, mixer, first=None):
    """With the state of the paper, values by keys; ``first`` are the first layer's values."""
    heads, width = p["decay"].shape
    state, before, out = np.zeros((heads, width, width)), np.zeros(WIDTH), []
    for t, now in enumerate(x):
        mixed, before = [now + m * (before - now) for m in p["mixes"]], now
        r, w, k, v, a, g = mixed
        share = sigmoid(p["value"] + into(into(v, p["value_down"]), p["value_up"])) if "value" in p else 0
        w = np.exp(-np.exp(-0.5) * sigmoid(p["decay"] + into(np.tanh(into(w, p["decay_down"])), p["decay_up"])))
        a = sigmoid(p["rate"] + into(into(a, p["rate_down"]), p["rate_up"]))
        g = into(sigmoid(into(g, p["gate_down"])), p["gate_up"])
        r, k, v = into(r, p["r"]), into(k, p["k"]), into(v, p["v"])
        v = v if first is None else v + (first[t] - v) * share
        kappa = k * p["k_k"]
        kappa = kappa / np.linalg.norm(kappa, axis=-1, keepdims=True)
        k = k * (1 + (a - 1) * p["k_a"])
        removed = np.stack([np.outer(one, one * rate) for one, rate in zip(kappa, a, strict=True)])
        state = state @ (np.stack([np.diag(row) for row in w]) - removed) + v[..., None] * k[:, None]
        o = head_norm(p, np.einsum("hvk,hk->hv", state, r), mixer.eps)
        o = o + (r * k * p["r_k"]).sum(-1, keepdims=True) * v
        out.append(np.tensordot(o * g, p["out"], 2))
    return np.stack(out)


@pytest.mark.parametrize(
    ("formula", "mixer"),
    [
        (gla, Gla(heads=4, rank=3, temperature=2.0, eps=1e-3, chunk=7)),
        (rwkv6, Rwkv6(heads=4, shift_rank=3, decay_rank=2, eps=1e-3)),
        (rwkv7, Rwkv7(heads=4, decay_rank=2, rate_rank=3, gate_rank=5, eps=1e-3, chunk=7)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_is_the_formula(formula, mixer):
    p = draw_params(mixer.params(Dims(WIDTH)))
    call = functools.partial(mixer, ctx=Context(positions=jnp.arange(LENGTH)[None]))
    y, _ = jax.jit(call)(p, jnp.asarray(X, jnp.float32))
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    close(y, np.stack([formula(exact, row, mixer) for row in X]))


def test_values_are_mixed_with_those_of_the_first_layer():
    make = lambda values: Rwkv7(heads=4, values=values, decay_rank=2, rate_rank=3, gate_rank=5, value_rank=2, chunk=4)
    layer = lambda values, repeats: Group((Block(mixer=make(values), ffn=None),), repeats)
    model = LanguageModel(ModelSpec(vocab_size=11, width=WIDTH, layers=(layer("first", 1), layer("mixed", 2))))
    params = draw_params(param_specs(model.spec))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, LENGTH)), jnp.int32)
    call = jax.jit(lambda p, t, state=None: model.apply({"params": p}, t, state=state))
    whole = call(params, tokens)

    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    eps = model.spec.layers[0].pattern[0].norm.eps
    norm = lambda p, x: x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * p["scale"]
    for row in range(2):
        x, values = exact["embed"]["table"][tokens[row]], None
        for group, r in (("group_0", 0), ("group_1", 0), ("group_1", 1)):
            p = jax.tree.map(lambda a, r=r: a[r], exact[group]["block_0"])
            inputs = norm(p["mixer_norm"], x)
            if values is None:
                before = np.concatenate((np.zeros((1, WIDTH)), inputs[:-1]))
                values = [into(one, p["mixer"]["v"]) for one in inputs + p["mixer"]["mixes"][3] * (before - inputs)]
            x = x + rwkv7(p["mixer"], inputs, make("own"), values if "value" in p["mixer"] else None)
        close(whole.hidden[row], norm(exact["final_norm"], x))

    state, pieces = init_state(model, 2, LENGTH), []
    for start, stop in ((0, 5), (5, 6), (6, LENGTH)):
        out = call(params, tokens[:, start:stop], state)
        pieces, state = [*pieces, out.logits], out.state
    close(jnp.concatenate(pieces, 1), whole.logits)


def test_published_initial_values():
    """Those of the middle of the model, at a width where they can be counted."""
    channel = np.arange(128) / 128
    p = initialize(Rwkv6(heads=2).params(Dims(128)), jax.random.key(0))
    close(p["mix"], 1 - channel**0.5)
    close(p["mixes"][4], 1 - channel**0.25)
    np.testing.assert_allclose([p["decay"][0, 0], p["decay"][1, 63]], [-6, -1], atol=1e-6)
    np.testing.assert_allclose(p["bonus"].reshape(-1)[:3], [0.5, 0.5 - 0.5 / 127 + 0.1, 0.5 - 1 / 127 - 0.1], atol=1e-6)
    p = initialize(Rwkv7(heads=2).params(Dims(128)), jax.random.key(0))
    close(p["mixes"][1], 1 - channel**0.45)
    np.testing.assert_allclose([p["decay"][0, 0], p["decay"][1, 63]], [-5.5 - 2.5, 0.5 + 2.5], atol=1e-6)
    np.testing.assert_allclose([p["k_k"].mean(), p["k_a"].mean(), p["r_k"].mean()], [0.71, 1.02, -0.04], atol=1e-6)
    assert p["decay_down"].shape[1] == p["rate_down"].shape[1] == 32 and p["gate_down"].shape[1] == 64
    assert not p["decay_down"].any() and np.abs(p["k"]).max() <= 0.05 * 128**-0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rwkv6(heads=0), "Rwkv6.heads: expected a positive number, got 0"),
        (lambda: Rwkv6(shift_rank=0), "Rwkv6.shift_rank: expected a positive integer, got 0"),
        (lambda: Rwkv7(heads=3).params(Dims(16)), "Rwkv7.heads: model width 16 is not divisible by 3"),
        (lambda: Rwkv7(gate_rank=-1), "Rwkv7.gate_rank: expected an integer >= 0, got -1"),
        (lambda: Rwkv7(values="all"), "unknown Rwkv7.values 'all'; allowed: first, mixed, own"),
        (
            lambda: Group((Block(mixer=Rwkv7(values="first")),), 2),
            "Group.repeats: a layer that hands on to later ones stands in a group of one repeat, got 2",
        ),
        (
            lambda: Rwkv7(heads=2, values="mixed")(
                initialize(Rwkv7(heads=2, values="mixed").params(Dims(8)), jax.random.key(0)),
                jnp.zeros((1, 2, 8)),
                Context(positions=jnp.arange(2)[None]),
            ),
            "Rwkv7.values 'mixed' needs a layer before it in the model with values 'first'",
        ),
        (lambda: Rwkv7(implementation="fast"), "unknown Rwkv7.implementation 'fast'; allowed: auto, reference, xla"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value) == message
