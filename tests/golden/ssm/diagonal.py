"""Diagonal scans: Mamba's selective scan, RG-LRU, S5, and the blocks around them, Hyena's among them."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.types import Context, Dims
from jaxlm.mixer.hyena import Hyena, features
from jaxlm.mixer.mamba import Mamba
from jaxlm.mixer.rg_lru import RgLru, rg_lru
from jaxlm.mixer.s5 import multi_scan
from jaxlm.ops.s4_kernel import discretise
from jaxlm.ops.segments import rows_of
from jaxlm.ops.selective_scan import selective_scan
from tests.golden.ssm.data import check_values_and_gradients, close, files
from tests.tiny import slow


@pytest.mark.parametrize(
    "implementation, chunk",
    [
        ("xla", 7),
        ("tree", 64),
        *slow(
            ("reference", 64), *(("xla", chunk) for chunk in (1, 16, 64)), *(("tree", chunk) for chunk in (1, 7, 16))
        ),
    ],
)
@pytest.mark.parametrize("kind", ["full", "grouped", "static_bc"])
def test_selective_scan(golden, kind, implementation, chunk):
    for data in files(golden, f"selective_scan_{kind}"):

        def matrix(x):
            """(batch, groups, N, time) -> ours; one group may be left out, and so may the time."""
            x = x[:, None] if x.ndim == 3 else x
            return x if x.ndim == 2 else jnp.moveaxis(x, 3, 1)

        def run(x, data=data):
            along = lambda array, x=x: jnp.swapaxes(x[array], 1, 2)
            delta = along("delta")
            if "delta_bias" in x:
                delta = jax.nn.softplus(delta + x["delta_bias"])
            options = {"d": x.get("D"), "chunk": chunk, "implementation": implementation}
            y, state = selective_scan(along("u"), delta, x["A"], matrix(x["B"]), matrix(x["C"]), **options)
            y = y * jax.nn.silu(along("z")) if "z" in x else y
            return {"y": jnp.swapaxes(y, 1, 2), "last_state": state}

        check_values_and_gradients(data, run, [name[3:] for name in data if name.startswith("in_")])


@pytest.mark.parametrize(
    ("chunk", "implementation"), [(7, "xla"), (64, "xla"), *slow((1, "xla"), (16, "xla"), (64, "reference"))]
)
def test_rglru(golden, chunk, implementation):
    for data in files(golden, "rglru"):
        starts = jnp.asarray(data["in_segment_pos"] == 0)
        rows = rows_of(jnp.cumsum(starts, 1, dtype=jnp.int32))

        def gates(x, batch):
            by_block = lambda w, b: jnp.einsum("blhw,hwv->blhv", batch.reshape(*batch.shape[:2], *b.shape), w) + b
            return (by_block(x[f"{gate}w"], x[f"{gate}b"]).reshape(batch.shape) for gate in "ai")

        def run(x, rows=rows, starts=starts):
            options = {"rows": rows, "chunk": chunk, "implementation": implementation}
            y, last = rg_lru(x["x"], *gates(x, x["x"]), x["a_param"], starts, **options)
            return {"y": y, "last_h": last}

        check_values_and_gradients(data, run, ["x", "a_param", "iw", "ib", "aw", "ab"])
        given = {name[3:]: jnp.asarray(value) for name, value in data.items() if name.startswith("in_")}
        step, again = jnp.asarray(data["step_x"]), jnp.zeros(data["step_x"].shape[:2], bool)
        one = lambda x, h: rg_lru(step, *gates(x, step), x["a_param"], again, state=h)  # noqa: B023
        y, h = jax.jit(one)(given, jnp.asarray(data["out_last_h"]))
        close(y, data["step_y"], name="step_y")
        close(h, data["step_h"], name="step_h")


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_s5(golden, rule, implementation):
    for data in files(golden, f"s5_{rule}"):
        with jax.enable_x64(True):
            p = {name[6:]: jnp.asarray(value) for name, value in data.items() if name.startswith("param_")}
            pairs = lambda x: jax.lax.complex(x[..., 0], x[..., 1])
            a = jax.lax.complex(p["Lambda_re"], p["Lambda_im"])
            log_a, b = discretise(a, pairs(p["B"]).T, jnp.exp(p["log_step"][:, 0]), rule)
            u = jnp.asarray(data["in_x"])[None]
            scan = functools.partial(multi_scan, chunk=4, implementation=implementation)
            y, _ = jax.jit(scan)(log_a, b, pairs(p["C"]).T, u)
            np.testing.assert_allclose((y + p["D"] * u)[0], data["out_y"], rtol=0, atol=1e-10)


def whole(mixer, p, x):
    return jax.jit(lambda p, x: mixer(p, x, Context(positions=jnp.zeros((1, 1), jnp.int32)))[0])(p, x)


def in_pieces(mixer, p, x, pieces):
    """Outputs of ``pieces`` of x one after the other, and the state after each."""
    state = mixer.init_state(Dims(width=x.shape[-1]), len(x), x.shape[1], jnp.float32, None)
    run = jax.jit(lambda x, state: mixer(p, x, Context(positions=jnp.zeros((1, x.shape[1]), jnp.int32)), state))
    found, at = [], 0
    for size in pieces:
        y, state = run(x[:, at : at + size], state)
        found.append((y, state))
        at += size
    return found


def griffin_params(w):
    """Ours of the public project's."""
    heads, block = w["rg_lru.a_gate.b"].shape
    split = lambda x: x.reshape(*x.shape[:-1], heads, block)
    return {
        "gate": split(w["linear_y.weight"].T),
        "gate_bias": split(w["linear_y.bias"]),
        "in": split(w["linear_x.weight"].T),
        "in_bias": split(w["linear_x.bias"]),
        "conv": split(w["conv_1d.w"][::-1]),
        "conv_bias": split(w["conv_1d.b"]),
        "recurrence_gate": w["rg_lru.a_gate.w"],
        "recurrence_gate_bias": w["rg_lru.a_gate.b"],
        "input_gate": w["rg_lru.input_gate.w"],
        "input_gate_bias": w["rg_lru.input_gate.b"],
        "decay": split(w["rg_lru.a_param"]),
        "out": w["linear_out.weight"].T.reshape(heads, block, -1),
        "out_bias": w["linear_out.bias"],
    }


def test_griffin_block(golden):
    for data in files(golden, "griffin_recurrent_block"):
        w = {name[6:]: jnp.asarray(value) for name, value in data.items() if name.startswith("param_")}
        p, (heads, block) = griffin_params(w), w["rg_lru.a_gate.b"].shape
        mixer = RgLru(width=heads * block, heads=heads, conv=len(w["conv_1d.w"]), chunk=4)
        x, prefill = jnp.asarray(data["in_x"]), int(data["arg_prefill_len"])
        close(whole(mixer, p, x), data["out_full"], name="full")
        found = in_pieces(mixer, p, x, [prefill] + [1] * (x.shape[1] - prefill))
        close(found[0][0], data["out_prefill"], name="prefill")
        close(np.concatenate([y for y, _ in found[1:]], 1), data["out_steps"], name="steps")
        for kind, (_, state) in (("prefill", found[0]), ("final", found[-1])):
            close(state.memory["state"].reshape(len(x), -1), data[f"{kind}_rglru_state"], name=kind)
            tail = state.tail["conv"].values
            close(tail.reshape(*tail.shape[:2], -1), data[f"{kind}_conv_state"], name=kind)


def test_mamba_mixer(golden):
    """The first layer's mixer, and its states in a whole model of transformers'."""
    for data in files(golden, "hf_mamba_lm"):
        config = json.loads(bytes(data["config_json"]))
        head = "param_backbone.layers.0.mixer."
        w = {name.removeprefix(head): jnp.asarray(x) for name, x in data.items() if name.startswith(head)}
        size, channels = config["hidden_size"], config["intermediate_size"]
        p = {
            "in": w["in_proj.weight"].T.reshape(size, 2, channels),
            "conv": w["conv1d.weight"][:, 0, ::-1].T,
            "conv_bias": w["conv1d.bias"],
            "x": w["x_proj.weight"].T,
            "dt": w["dt_proj.weight"].T,
            "dt_bias": w["dt_proj.bias"],
            "a_log": w["A_log"],
            "skip": w["D"],
            "out": w["out_proj.weight"].T,
        }
        fields = {"state": config["state_size"], "conv": config["conv_kernel"], "dt_rank": config["time_step_rank"]}
        mixer = Mamba(**fields, expand=channels / size, chunk=4)
        specs = mixer.params(Dims(width=size))
        assert {name: spec.shape for name, spec in specs.items()} == {name: x.shape for name, x in p.items()}
        x, prefill, steps = jnp.asarray(data["out_mixer0_in"]), int(data["arg_prefill_len"]), int(data["arg_steps"])
        close(whole(mixer, p, x), data["out_mixer0"], whole_model=True)
        found = in_pieces(mixer, p, x, [prefill] + [1] * steps)
        outputs = np.concatenate([y for y, _ in found], 1)
        close(outputs, data["out_mixer0"][:, : prefill + steps], whole_model=True)
        for kind, (_, state) in (("prefill", found[0]), ("final", found[-1])):
            close(state.memory["state"], data[f"{kind}_ssm_state_0"], whole_model=True, name=kind)
            theirs = np.swapaxes(data[f"{kind}_conv_state_0"], 1, 2)[:, 1:]  # they keep one more than is read again
            close(state.tail["conv"].values, theirs, whole_model=True, name=kind)


def hyena_params(w):
    """Ours of the public project's, and how many hidden layers the filter's network has."""
    width = len(w["out_proj.bias"])
    network = sorted(int(n.split(".")[2]) for n in w if "implicit_filter" in n and n.endswith("weight"))
    layer = lambda i, what: w[f"filter_fn.implicit_filter.{i}.{what}"]
    channels = lambda x: jnp.moveaxis(x.reshape(3, width, *x.shape[1:]), -1, 0)
    p = {
        "in": channels(w["in_proj.weight"]),
        "in_bias": w["in_proj.bias"].reshape(3, width),
        "conv": channels(w["short_filter.weight"][:, 0, ::-1]),
        "conv_bias": w["short_filter.bias"].reshape(3, width),
        "frequency": layer(network[0] + 1, "freq")[0],
        "delta": w["filter_fn.modulation.deltas"].reshape(-1),
        "skip": w["filter_fn.bias"],
        "out": w["out_proj.weight"].T,
        "out_bias": w["out_proj.bias"],
        "filter": layer(network[-1], "weight").T,
    }
    for i, index in enumerate(network[:-1]):
        np.testing.assert_array_equal(layer(index + 1, "freq")[0], p["frequency"])  # one for all layers
        p |= {f"filter_{i}": layer(index, "weight").T, f"filter_{i}_bias": layer(index, "bias")}
    return p, len(network) - 1


def test_hyena(golden):
    for data in files(golden, "hyena_operator"):
        w = {name[6:]: jnp.asarray(value) for name, value in data.items() if name.startswith("param_")}
        (p, layers), z = hyena_params(w), data["param_filter_fn.pos_emb.z"][0]
        conv, hidden = w["short_filter.weight"].shape[-1], len(p["frequency"])
        fields = {"max_length": len(z), "features": z.shape[1], "hidden": hidden, "layers": layers}
        mixer = Hyena(**fields, conv=conv)
        assert {name: s.shape for name, s in mixer.params(Dims(width=len(p["skip"]))).items()} == {
            n: x.shape for n, x in p.items()
        }
        close(features(len(z), z.shape[1]), z, name="features")
        x = jnp.asarray(data["in_x"])
        close(whole(mixer, p, x), data["out_y"])
        pieces = [5, 1, 1, x.shape[1] - 7]
        steps = [y for y, _ in in_pieces(mixer, p, x, pieces)]
        close(np.concatenate(steps, 1), data["out_y"], name="pieces")
