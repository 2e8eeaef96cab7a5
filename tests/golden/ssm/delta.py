"""The delta rule and its kin: DeltaNet, Gated DeltaNet, KDA, RWKV-7, and a layer of Qwen3-Next."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.params import map_specs
from jaxlm.core.types import Context, Dims
from jaxlm.mixer.gated_delta_net import GatedDeltaNet
from jaxlm.ops.delta_rule import delta_rule
from jaxlm.ops.dplr import dplr
from tests.golden.ssm.data import check_values_and_gradients, close, files
from tests.tiny import slow

ways = pytest.mark.parametrize(
    ("chunk", "implementation"), [(7, "xla"), (64, "xla"), *slow((1, "xla"), (16, "xla"), (64, "reference"))]
)


def by_time(x, names):
    """[B, H, L, ...] as [B, L, H, ...], for files whose heads come first."""
    return tuple(jnp.swapaxes(jnp.asarray(x[name]), 1, 2) for name in names)


def unscaled(q):
    return q * np.float32(q.shape[-1] ** -0.5)


@ways
def test_delta_rule(golden, chunk, implementation):
    for data in files(golden, "delta_rule_recurrent"):

        def run(x):
            q, k, v, beta = by_time(x, ["q", "k", "v", "beta"])
            how = {"state": x["initial_state"], "chunk": chunk, "implementation": implementation}
            o, state = delta_rule(unscaled(q), k, v, beta, **how)
            return {"o": jnp.swapaxes(o, 1, 2), "final_state": state}

        check_values_and_gradients(data, run, ["q", "k", "v", "beta", "initial_state"])


def test_delta_rule_by_chunks(golden):
    for data in files(golden, "delta_rule_chunk"):
        q, k, v, beta = by_time({name.removeprefix("in_"): x for name, x in data.items()}, ["q", "k", "v", "beta"])
        o, state = delta_rule(unscaled(q), k, v, beta, chunk=int(data["arg_chunk_size"]))
        for name in ("out_o", "out_o_chunk"):
            close(jnp.swapaxes(o, 1, 2), data[name], name=name)
        for name in ("out_final_state", "out_state_chunk"):
            close(state, data[name], name=name)


@ways
@pytest.mark.parametrize("kind", ["gated_delta_rule_recurrent", "kda_recurrent"])
def test_gated_delta_rule(golden, kind, chunk, implementation):
    """One log decay per head, and one per key channel."""
    for data in files(golden, kind):

        def run(x):
            how = {"state": x["initial_state"], "chunk": chunk, "implementation": implementation}
            o, state = delta_rule(unscaled(x["q"]), x["k"], x["v"], x["beta"], x["g"], **how)
            return {"o": o, "final_state": state}

        check_values_and_gradients(data, run, ["q", "k", "v", "beta", "g", "initial_state"])


@ways
def test_rwkv7(golden, chunk, implementation):
    for data in files(golden, "rwkv7_dplr_recurrent"):

        def run(x):
            q, k, v, a, b, g = by_time(x, ["q", "k", "v", "alpha", "beta", "gk"])
            how = {"state": x["initial_state"], "chunk": chunk, "implementation": implementation}
            o, state = dplr(unscaled(q), k, v, a, b, g, **how)
            return {"o": jnp.swapaxes(o, 1, 2), "final_state": state}

        check_values_and_gradients(data, run, ["q", "k", "v", "alpha", "beta", "gk", "initial_state"])


def layer_of(data):
    """The mixer and its parameters: fused projections hold q, k, v, z and beta, a of one key head after another."""
    groups, heads, key, value = (
        int(data[f"arg_{name}"]) for name in ("num_k_heads", "num_v_heads", "head_k", "head_v")
    )
    width, each = data["in_x"].shape[-1], heads // groups
    given = {name.removeprefix("param_"): array for name, array in data.items() if name.startswith("param_")}
    fused = given["in_proj_qkvz.weight"].reshape(groups, 2 * key + 2 * each * value, width)
    q, k, v, z = np.split(fused, np.cumsum([key, key, each * value]), 1)
    beta, a = np.split(given["in_proj_ba.weight"].reshape(groups, 2 * each, width), 2, 1)
    taps = given["conv1d.weight"][:, 0, ::-1].T  # the current token first
    q_taps, k_taps, v_taps = np.split(taps, [groups * key, 2 * groups * key], 1)
    by_head = lambda weight, size: np.moveaxis(weight.reshape(heads, size, width), -1, 0)
    by_group = lambda x: x.reshape(len(taps), groups, key)
    params = {
        "qk": np.moveaxis(np.stack((q, k), 1), -1, 0),
        "v": by_head(v, value),
        "z": by_head(z, value),
        "beta": by_head(beta, 1)[..., 0],
        "a": by_head(a, 1)[..., 0],
        "qk_conv": np.stack((by_group(q_taps), by_group(k_taps)), 2),
        "v_conv": v_taps.reshape(len(taps), heads, value),
        "A_log": given["A_log"],
        "dt_bias": given["dt_bias"],
        "norm": {"scale": given["norm.weight"]},
        "out": np.moveaxis(given["out_proj.weight"].reshape(width, heads, value), 0, -1),
    }
    widths: dict[str, Any] = {"key_width": key, "value_width": value, "conv": len(taps)}
    return GatedDeltaNet(heads=heads, key_heads=groups, **widths, eps=float(data["arg_eps"])), params


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_gated_delta_net_layer(golden, implementation):
    """A layer of Qwen3-Next, with fewer key heads than value heads."""
    for data in files(golden, "hf_gated_deltanet_layer"):
        mixer, params = layer_of(data)
        mixer, x = dataclasses.replace(mixer, implementation=implementation), jnp.asarray(data["in_x"])
        assert jax.tree.map(np.shape, params) == map_specs(lambda _, spec: spec.shape, mixer.params(Dims(x.shape[-1])))
        ctx = Context(positions=jnp.arange(x.shape[1])[None])
        y, _ = jax.jit(functools.partial(mixer, ctx=ctx))(jax.tree.map(jnp.asarray, params), x)
        close(y, data["out_y"])
