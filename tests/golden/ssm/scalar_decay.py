"""Scalar decay: linear attention, retention, simple GLA, SSD, mLSTM, Based, and the mixer of Mamba-2."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.types import Context, Dims
from jaxlm.mixer.based import taylor
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.mixer.retnet import log_decays
from jaxlm.ops.mlstm import mlstm
from jaxlm.ops.scalar_decay import scalar_decay
from tests.golden.ssm.data import Data, check_values_and_gradients, close, files
from tests.tiny import slow

CHUNKS = [7, 64]
forms = pytest.mark.parametrize(
    "form", [*({"chunk": chunk} for chunk in CHUNKS), *slow(({"implementation": "reference"},))], ids=str
)


def swapped(x: jax.Array) -> jax.Array:
    """[B, H, L, K] <-> [B, L, H, K]."""
    return jnp.swapaxes(x, 1, 2)


def scaled(q: jax.Array) -> jax.Array:
    return q * np.float32(q.shape[-1] ** -0.5)


@forms
def test_simple_gla(golden, form):
    for data in files(golden, "simple_gla_recurrent"):

        def run(x):
            o, state = scalar_decay(scaled(x["q"]), x["k"], x["v"], x["g"], state=x["initial_state"], **form)
            return {"o": o, "final_state": state}

        check_values_and_gradients(data, run, ["q", "k", "v", "g", "initial_state"])


@forms
def test_linear_attention(golden, form):
    for data in files(golden, "linear_attn_recurrent"):

        def run(x):
            o, state = scalar_decay(scaled(x["q"]), x["k"], x["v"], state=x["initial_state"], **form)
            return {"o": o, "final_state": state}

        check_values_and_gradients(data, run, ["q", "k", "v", "initial_state"])


@forms
def test_retention(golden, form):
    for data in files(golden, "retention_parallel"):

        def run(x):
            q, k, v = (swapped(x[name]) for name in "qkv")
            return {"o": swapped(scalar_decay(scaled(q), k, v, jnp.asarray(log_decays(q.shape[2])), **form)[0])}

        check_values_and_gradients(data, run, ["q", "k", "v"])


@forms
@pytest.mark.parametrize("kind", ["ssd_minimal", "ssd_strong_decay"])
def test_ssd(golden, kind, form):
    """States are stored as (P, N). Files of one prefix are with and without an initial one."""
    for data in files(golden, kind):

        def run(x):
            start = jnp.swapaxes(x["initial_states"][:, 0], 2, 3) if "initial_states" in x else None
            y, state = scalar_decay(x["C"], x["B"], x["X"], x["A"], state=start, **form)
            return {"y": y, "final_state": jnp.swapaxes(state, 2, 3)}

        given = ["initial_states"] if "in_initial_states" in data else []
        check_values_and_gradients(data, run, ["X", "A", "B", "C", *given])


@forms
def test_mlstm(golden, form):
    for data in files(golden, "mlstm_recurrent"):

        def run(x):
            q, k, v, i, f = (swapped(x[name]) for name in ("query", "key", "value", "igate", "fgate"))
            h, memory = mlstm(scaled(q), k, v, i, jax.nn.log_sigmoid(f), **form)
            return {"h": swapped(h), "C": memory.c, "n": memory.n, "m": memory.m[..., None]}

        check_values_and_gradients(data, run, ["query", "key", "value", "igate", "fgate"])


@forms
def test_based(golden, form):
    for data in files(golden, "based_parallel"):

        def run(x):
            q, k, v = (swapped(x[name]) for name in "qkv")
            v = jnp.concatenate((v, jnp.ones_like(v[..., :1])), -1)
            o = scalar_decay(taylor(q), taylor(k), v, **form)[0]
            return {"o": swapped(o[..., :-1] / (o[..., -1:] + 1e-6))}

        check_values_and_gradients(data, run, ["q", "k", "v"])


def ours_of(stored: Data, method: Mamba2, width: int) -> dict[str, jax.Array]:
    """Our parameters from those of Hugging Face: one projection [z, x, b, c, dt] and one convolution of [x, b, c]."""
    shapes = {name: spec.shape for name, spec in method.params(Dims(width=width)).items()}
    heads, shared = shapes["norm"], shapes["b"][1:]
    sizes = np.cumsum([np.prod(s) for s in (heads, heads, shared, shared)])
    parts = dict(zip(("z", "x", "b", "c", "dt"), np.split(stored["in_proj.weight"].T, sizes, 1), strict=True))
    taps = np.split(stored["conv1d.weight"][:, 0, ::-1].T, sizes[1:3] - sizes[0], 1)
    biases = np.split(stored["conv1d.bias"], sizes[1:3] - sizes[0])
    for name, tap, bias in zip("xbc", taps, biases, strict=True):
        parts |= {f"conv_{name}": tap, f"conv_{name}_bias": bias}
    parts |= {"a_log": stored["A_log"], "dt_bias": stored["dt_bias"], "skip": stored["D"]}
    parts |= {"norm": stored["norm.weight"], "out": stored["out_proj.weight"].T}
    assert set(parts) == set(shapes)
    return {name: jnp.asarray(value.reshape(shapes[name])) for name, value in parts.items()}


def caller(method: Mamba2):
    """A jitted ``(params, x, segment_ids, state) -> (y, state)``; the last two may be None."""

    def call(p, x, segments=None, state=None):
        return method(p, x, Context(positions=jnp.arange(x.shape[1])[None], segment_ids=segments), state)

    return jax.jit(call)


@forms
def test_mamba2_mixer_with_limited_steps(golden, form):
    for _, call, p, data in limited(golden, **form):
        close(call(p, jnp.asarray(data["in_x"]))[0], data["out_y"])


def test_the_limits_hold_in_single_steps(golden):
    for method, call, p, data in limited(golden):
        x = jnp.asarray(data["in_x"])
        state = method.init_state(Dims(width=x.shape[2]), len(x), 1, jnp.float32, None)
        for at in range(x.shape[1]):
            y, state = call(p, x[:, at : at + 1], None, state)
            close(y[:, 0], data["out_y"][:, at])


def limited(golden, **form):
    for data in files(golden, "hf_mamba2_mixer_dtlimit"):
        width = data["in_x"].shape[-1]
        method = Mamba2(
            state=int(data["arg_state_size"]),
            head_dim=int(data["arg_head_dim"]),
            groups=int(data["arg_n_groups"]),
            expand=data["param_norm.weight"].size // width,
            conv=data["param_conv1d.weight"].shape[-1],
            step_limit=(float(data["arg_dt_min_limit"]), float(data["arg_dt_max_limit"])),
            norm_eps=float(data["arg_norm_eps"]),
            **form,
        )
        p = ours_of({name[6:]: data[name] for name in data if name.startswith("param_")}, method, width)
        yield method, caller(method), p, data


def first_layers(golden, chunk: int):
    """The first mixer of each whole model."""
    for data in files(golden, "hf_mamba2_lm"):
        config = json.loads(data["config_json"].tobytes())
        method = Mamba2(
            state=config["state_size"],
            head_dim=config["head_dim"],
            groups=config["n_groups"],
            expand=config["expand"],
            conv=config["conv_kernel"],
            norm_eps=config["layer_norm_epsilon"],
            chunk=chunk,
        )
        mark = "param_backbone.layers.0.mixer."
        stored = {name[len(mark) :]: data[name] for name in data if name.startswith(mark)}
        yield method, caller(method), ours_of(stored, method, config["hidden_size"]), data


@pytest.mark.parametrize("chunk", [7, *slow((64,))])
def test_mamba2_mixer_and_its_states(golden, chunk):
    """Output, states after a prefill, and single steps from there."""
    for method, call, p, data in first_layers(golden, chunk):
        x, first = jnp.asarray(data["out_mixer0_in"]), int(data["arg_prefill_len"])
        close(call(p, x)[0], data["out_mixer0"])

        empty = method.init_state(Dims(width=x.shape[2]), len(x), 1, jnp.float32, None)
        y, state = call(p, x[:, :first], None, empty)
        close(y, data["out_mixer0"][:, :first])
        close(jnp.moveaxis(state.memory["state"], 2, 3), data["prefill_ssm_state_0"])
        inputs = [state.tail[name].values.reshape(*x.shape[:1], method.conv - 1, -1) for name in "xbc"]
        window = data["prefill_conv_state_0"][..., 1:]  # Hugging Face keeps one token more than the next step needs
        close(jnp.moveaxis(jnp.concatenate(inputs, -1), 1, 2), window)
        for at in range(first, first + int(data["arg_steps"])):
            y, state = call(p, x[:, at : at + 1], None, state)
            close(y[:, 0], data["out_mixer0"][:, at])
        close(jnp.moveaxis(state.memory["state"], 2, 3), data["final_ssm_state_0"])


@pytest.mark.parametrize("chunk", [7, *slow((64,))])
def test_mamba2_mixer_behind_padding(golden, chunk):
    """Rows that the file pads on the left: padding, whatever it holds, changes nothing of what follows."""
    for _, call, p, data in first_layers(golden, chunk):
        x, mask = data["out_mixer0_in"], data["in_left_pad_mask"]
        padding = (mask == 0).sum(1)
        assert padding.any()
        moved = np.full_like(x, 7.0)
        for row, n in enumerate(padding):
            moved[row, n:] = x[row, : x.shape[1] - n]
        y = call(p, jnp.asarray(moved), jnp.asarray(mask, jnp.int32))[0]
        for row, n in enumerate(padding):
            close(y[row, n:], data["out_mixer0"][row, : x.shape[1] - n])
            assert not np.asarray(y[row, :n]).any()
