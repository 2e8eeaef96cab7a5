"""Golden vectors of position encodings: rotary tables and rotations, scalings, biases, temperatures, sinusoids, masks.

Shapes and settings come from the files; the tolerances are those of the README beside them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention.mask import Anchor, Causal, Lambda, Segments, Window, dense
from jaxlm.core.types import Dims
from jaxlm.interop import rope
from jaxlm.interop.config import Config
from jaxlm.ops.landmark import landmark_attention
from jaxlm.position.alibi import Alibi, slopes
from jaxlm.position.fire import Fire, normalised
from jaxlm.position.kerple import Kerple
from jaxlm.position.log_n import LogN
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling.clex import Clex
from jaxlm.position.scaling.linear import Linear
from jaxlm.position.scaling.power import Power
from jaxlm.position.scaling.truncated import Truncated
from jaxlm.position.sinusoidal import Sinusoidal
from jaxlm.position.t5_bias import T5Bias, bucket
from jaxlm.position.temperature import Temperature
from jaxlm.position.xpos import XPos
from pallas_kernels.landmark_attention.reference import grouped_softmax


def files(golden: Path, prefix: str) -> list[dict[str, np.ndarray]]:
    found = [dict(np.load(path)) for path in sorted((golden / "positions").glob(f"{prefix}*.npz"))]
    assert found, f"no positions/{prefix}*.npz in {golden}"
    return found


def close(ours, reference: np.ndarray, rtol: float = 1e-4, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=rtol, atol=atol)


def table_close(ours, reference: np.ndarray, positions: np.ndarray) -> None:
    """For cos and sin: the angle carries the rounding of the position."""
    difference = np.abs(np.asarray(ours) - reference).max(-1)
    assert (difference <= 1e-5 + 1e-7 * positions).all(), difference.max()


def whole_numbers(size: int) -> jnp.ndarray:
    return jnp.arange(size, dtype=jnp.int32)[None]


def rotate(rotary: Rotary, x, positions) -> np.ndarray:
    return np.asarray(jax.jit(lambda x, positions: rotary.rotate({}, x, positions, None))(x, positions))


def scaled(config: dict) -> Rotary:
    """The rotary encoding of a file's settings, which are those of a transformers configuration."""
    return rope.read(Config(config), head_dim=config["head_dim"])


def test_rope(golden):
    """Frequencies, tables and rotations of every scaling, at every recorded length."""
    for data in files(golden, "rope_"):
        if "config_json" not in data or "inv_freq_after_call" in data:
            continue  # of the tests below
        config = json.loads(data["config_json"].tobytes())
        rotary, width = scaled(config), config["head_dim"]
        amplitude = 1.0 if rotary.scaling is None else rotary.scaling.amplitude()
        frequencies = jax.jit(lambda length, rotary=rotary, width=width: rotary.frequencies({}, width, length))
        if "inv_freq" in data:  # a real model's, without tables
            close(frequencies(1), data["inv_freq"], rtol=3e-6, atol=0)
            close(amplitude, data["attention_scaling"], rtol=1e-6, atol=0)
            continue
        close(frequencies(1), data["inv_freq_init"], rtol=3e-6, atol=0)
        for length, *expected in zip(
            data["seq_lens"], data["inv_freq_by_len"], data["attention_scaling_by_len"], strict=True
        ):
            close(frequencies(int(length)), expected[0], rtol=3e-6, atol=0)
            close(amplitude, expected[1], rtol=1e-6, atol=0)
        pairs = data["inv_freq_init"].shape[0]
        tables = [key for key in data if key.startswith("cos_len")]
        assert tables
        for key in tables:
            # A 1 in the first channel of each pair turns into (cos, sin): the table, read through the public call.
            length = len(data[key])
            ones = jnp.concatenate((jnp.ones(pairs), jnp.zeros(width - pairs)))
            turned = rotate(rotary, jnp.tile(ones, (1, length, 1, 1)), whole_numbers(length))[0, :, 0, : 2 * pairs]
            expected = np.concatenate((data[key][:, :pairs], data[f"sin{key[3:]}"][:, :pairs]), -1)
            table_close(turned, expected, np.arange(length))
        for name in ("q", "k"):
            turned = rotate(rotary, data[name].transpose(0, 2, 1, 3), data["positions"][None])
            close(turned.transpose(0, 2, 1, 3), data[f"{name}_rot"])


def test_rope_follows_the_length_and_nothing_else(golden):
    """transformers' module remembers the longest call; ours is a function of the length, and equal at each growth."""
    for data in files(golden, "rope_dynamic_stateful"):
        rotary = scaled(json.loads(data["config_json"].tobytes()))
        longest = 0
        for length, expected in zip(data["calls"], data["inv_freq_after_call"], strict=True):
            longest = 0 if length < rotary.scaling.original else max(longest, int(length))
            close(rotary.frequencies({}, 2 * len(expected), longest), expected, rtol=3e-6, atol=0)


def test_rope_interleaved(golden):
    for data in files(golden, "rope_interleaved"):
        table, width = data["table"], data["q"].shape[-1]
        rotary = Rotary(base=10_000.0, pairing="interleaved")
        ones = jnp.tile(jnp.asarray([1.0, 0.0]), (1, len(table), 1, width // 2))
        turned = rotate(rotary, ones, whole_numbers(len(table)))[0, :, 0]
        table_close(turned[:, 1::2], table[:, : width // 2], np.arange(len(table)))
        table_close(turned[:, 0::2], table[:, width // 2 :], np.arange(len(table)))
        close(rotate(rotary, data["q"], data["positions"]), data["q_rot"])


def test_rope_score_does_not_depend_on_the_start(golden):
    for data in files(golden, "bf16_rope_shift"):
        rotary, delta = Rotary(base=10_000.0), int(data["delta"])
        starts, rows = jnp.asarray(data["starts"])[:, None], (len(data["starts"]), 1, 1, 1)
        q = rotate(rotary, jnp.tile(data["q"], rows), starts + delta)
        k = rotate(rotary, jnp.tile(data["k"], rows), starts)
        scores = np.einsum("blhk,blhk->b", np.asarray(q, np.float64), np.asarray(k, np.float64))
        # Every product of the sum is wrong by its two tables' errors.
        slack = 2 * (1e-5 + 1e-7 * (data["starts"] + delta)) * np.linalg.norm(data["q"]) * np.linalg.norm(data["k"])
        assert (np.abs(scores - float(data["exact_float64"])) <= slack).all()
        assert (np.abs(scores - data["score_fp32"]) <= slack).all()


def test_alibi(golden):
    for data in files(golden, "alibi"):
        for heads, *rows in zip(data["heads"], data["slopes_bloom"], data["slopes_mpt"], strict=True):
            for row in rows:
                close(slopes(int(heads)), row[:heads], rtol=1e-6, atol=0)
        heads, length = data["ex_bias_mpt"].shape
        q = jnp.zeros((1, 1, heads, 2))
        bias = Alibi().bias({}, q, q, jnp.zeros(()), jnp.zeros(()))
        last = whole_numbers(length)[:, -1:]
        close(bias.tile(last, whole_numbers(length))[0, :, 0], data["ex_bias_mpt"], rtol=1e-6, atol=0)
        # BLOOM adds slope * key position, which differs from ours by a constant of each query that softmax ignores.
        mask = data["ex_attention_mask"]
        keys = ((mask.cumsum(-1) - 1) * mask).astype(np.int32)
        tile = np.asarray(bias.tile(jnp.asarray(keys.max(-1, keepdims=True)), jnp.asarray(keys)))[:, :, 0]
        bloom = data["ex_bias_bloom"]
        close(tile - tile[..., :1], bloom - bloom[..., :1], rtol=1e-6, atol=1e-6)


def test_t5_bias(golden):
    for data in files(golden, "t5_bias"):
        distance = jnp.asarray(-data["rel_positions"])
        keys = [re.fullmatch(r"bucket_(bi|causal)_(\d+)_(\d+)", key) for key in data if key.startswith("bucket_")]
        assert keys and all(keys)
        for key in keys:
            kind, buckets, furthest = key[1], int(key[2]), int(key[3])
            ours = jax.jit(bucket, static_argnums=(1, 2, 3))(distance, buckets, furthest, kind == "bi")
            np.testing.assert_array_equal(ours, data[key[0]], err_msg=key[0])
        table = data["bias_table"]
        furthest = [int(key[3]) for key in keys if int(key[2]) == len(table)]
        queries, length = int(data["bias_qlen"]), int(data["bias_klen"])
        at = whole_numbers(length)
        for kind in ("causal", "bi"):
            encoding = T5Bias(buckets=len(table), max_distance=furthest[0], bidirectional=kind == "bi")
            q = jnp.zeros((1, 1, table.shape[1], 2))
            tile = encoding.bias({"table": jnp.asarray(table)}, q, q, at, at).tile(at[:, length - queries :], at)
            np.testing.assert_array_equal(tile[0], data[f"bias_{kind}"])


def causal_tile(bias, length: int) -> np.ndarray:
    """A bias over a whole row, [H, length, length], 0 ahead of the query."""
    at = whole_numbers(length)
    return np.tril(np.asarray(jax.jit(lambda bias, at: bias.tile(at, at))(bias, at))[0])


def heads_of(count: int) -> jnp.ndarray:
    """A query that says no more than how many heads there are."""
    return jnp.zeros((1, 1, count, 2))


def test_kerple(golden):
    for data in files(golden, "kerple"):
        q, found = heads_of(int(data["heads"])), re.compile("bias_(.+)_causal")
        kernels = [match[1] for key in data if (match := found.fullmatch(key))]
        assert kernels
        for kernel in kernels:
            encoding = Kerple(kernel=kernel)
            p = {name: jnp.asarray(data[f"{kernel}_{name}"]) for name in encoding.params(Dims(width=1, heads=2))}
            bias = encoding.bias(p, q, q, jnp.zeros(()), jnp.zeros(()))
            close(causal_tile(bias, int(data["length"])), np.tril(data[f"bias_{kernel}_causal"]))


def test_fire(golden):
    """All but the last offset, the same for all keys of a head, which ours leaves out."""
    for data in files(golden, "fire"):
        length, heads = len(data["norm_distance"]), len(data["b2"])
        encoding = Fire(hidden=data["w1"].shape[1], length=float(data["L"]))
        p = {name: jnp.asarray(data[name]) for name in ("b1", "w2")}
        p |= {"w1": jnp.asarray(data["w1"][0]), "c": jnp.float32(data["c"]), "length": jnp.float32(1)}
        assert set(p) == set(encoding.params(Dims(width=1, heads=heads)))
        q = heads_of(heads)
        bias = encoding.bias(p, q, q, jnp.zeros(()), jnp.zeros(()))
        expected = np.tril(data["bias_lower_triangle"] - data["b2"][:, None, None])
        close(causal_tile(bias, length), expected)
        at = whole_numbers(length)[0]
        distance = normalised(p["c"], jnp.float32(data["L"]), at[:, None], at[None])
        close(np.tril(distance), np.tril(data["norm_distance"]))


def test_xpos(golden):
    for data in files(golden, "xpos"):
        q, k = (data[name].transpose(0, 2, 1, 3) for name in ("q", "k"))
        encoding, at = XPos(base=10_000.0, scale_base=float(data["scale_base"])), whole_numbers(q.shape[1])
        ((q_rot, k_rot, region),) = encoding.views({}, jnp.asarray(q), jnp.asarray(k), at, at, None)
        assert region is None
        for name, turned in (("q", q_rot), ("k", k_rot)):
            close(turned.transpose(0, 2, 1, 3), data[f"{name}_rot"])
        close(np.einsum("blhk,bthk->bhlt", q_rot, k_rot), data["logits_unscaled"])


def clex(name: str, data: dict[str, np.ndarray]) -> tuple[Clex, dict[str, jax.Array], float, int]:
    """The scaling of a file, its parameters, base and rotated width; the second word of the name is the activation."""
    pairs, hidden = data["up_proj"].shape
    scaling = Clex(
        original=int(data["max_position_embeddings"]),
        max_factor=int(data["max_factor"]),
        param_factor=hidden // (2 * pairs),
        activation=name.split("_")[1],
        step=float(data["time_dt"]),
        reference_base=True,
    )
    p = {"up": jnp.asarray(data["up_proj"]), "down": jnp.asarray(data["down_proj"])}
    return scaling, p, float(data["base"]), 2 * pairs


def test_clex(golden):
    """The equation, its solution at whole and broken times, and the tables of every length."""
    found = sorted((golden / "positions").glob("clex_*.npz"))
    assert found
    for path in found:
        data = dict(np.load(path))
        scaling, p, base, width = clex(path.stem, data)
        plain = scaling.frequencies(p, base, width, None)
        close(plain, data["inv_freq0"], rtol=3e-6, atol=0)
        slope = jax.jit(lambda p, x, t, scaling=scaling, base=base: scaling.derivative(p, base, x, t))
        for t, expected in zip(data["rhs_t"], data["rhs_at_log_inv_freq"], strict=True):
            close(slope(p, jnp.log(data["inv_freq0"]), t), expected)
        at_length = jax.jit(lambda p, n, s=scaling, base=base, width=width: s.frequencies(p, base, width, n))
        lengths = (data["t_grid"] * scaling.original).astype(np.int32)
        for key in ("freq_at_t", "freq_at_t_float64"):
            close(at_length(p, lengths), data[key], rtol=5e-5, atol=0)
        at_time = jax.jit(lambda p, t, s=scaling, base=base, width=width: s.at(p, base, width, t))
        for t, expected in zip(data["t_train"], data["freq_train"], strict=True):
            close(at_time(p, t), expected, rtol=5e-5, atol=0)
        at_rest = {**p, "down": jnp.zeros_like(p["down"])}
        close(at_length(at_rest, lengths), data["freq_zero_init"], rtol=5e-5, atol=0)
        rotary = Rotary(base=base, scaling=scaling)
        for key in (key for key in data if key.startswith("cos_len")):
            length = len(data[key])
            ones = jnp.tile(jnp.concatenate((jnp.ones(width // 2), jnp.zeros(width // 2))), (1, length, 1, 1))
            turned = jax.jit(lambda p, x, at, rotary=rotary: rotary.rotate(p, x, at, None))(
                p, ones, whole_numbers(length)
            )
            expected = np.concatenate((data[key][:, : width // 2], data[f"sin{key[3:]}"][:, : width // 2]), -1)
            difference = np.abs(np.asarray(turned)[0, :, 0] - expected).max(-1)
            assert (difference <= 1e-5 + 5e-5 * np.arange(length)).all(), (path.stem, key, difference.max())


def test_giraffe(golden):
    """Each basis by itself, and the truncated one over the linear one."""
    for data in files(golden, "giraffe_bases"):
        width, length = 2 * len(data["freq_none"]), int(data["truncate_length"])
        rules = {
            "freq_none": Power(exponent=0.0),
            "freq_linear4": Linear(4.0),
            "freq_linear16": Linear(16.0),
            "freq_power01": Power(exponent=0.1),
            "freq_power05": Power(exponent=0.5),
            "freq_trunc": Truncated(original=length),
            "freq_trunc_linear4": Truncated(Linear(4.0), original=length),
        }
        assert set(rules) <= set(data)
        for name, rule in rules.items():
            close(rule.frequencies({}, 10_000.0, width, None), data[name], rtol=3e-6, atol=0)


def test_attention_temperature(golden):
    for data in files(golden, "attention_temperature"):
        at, original = jnp.asarray(data["positions"])[None], int(data["logn_train_length"])
        llama4 = Temperature(rate=float(data["llama4_attn_scale"]), step=int(data["llama4_floor_scale"]))
        rules = {
            "llama4_scale": llama4,
            "clex_log_scale": LogN("none", original=original, least=0.0),
            "selfextend_logn": LogN("none", original=original),
        }
        for name, rule in rules.items():
            q = jnp.ones((1, at.shape[1], 2, 3))
            ((q, k, _),) = jax.jit(lambda q, rule=rule, at=at: rule.views({}, q, q, at, at, None))(q)
            close(q[0, :, 1, 2], data[name], rtol=1e-6, atol=1e-7)
            close(k, np.ones(k.shape), rtol=0, atol=0)


def test_sinusoidal(golden):
    for data in files(golden, "sinusoidal"):
        for name, layout in [("concat", "concat"), ("marian", "concat"), ("interleaved", "interleaved")]:
            length, width = data[name].shape
            table = Sinusoidal(layout=layout).embed({}, whole_numbers(length), width)[0]
            table_close(table, data[name], np.arange(length))


def test_masks(golden):
    for data in files(golden, "masks"):
        ids, at = data["doc_ids"], whole_numbers(len(data["doc_ids"]))
        masks = {
            "window": Window(int(data["window"])),
            "lambda": Lambda(int(data["window"]), int(data["sink"])),
            "intra_doc": Causal() & Segments(ids + 1),
            "anchor": Anchor(ids),
        }
        for name, mask in masks.items():
            np.testing.assert_array_equal(dense(mask, at, at)[0, 0], data[f"{name}_mask"])


def test_landmark_softmax(golden):
    """Probabilities and gradients, where blocks are uneven or empty, too."""
    for data in files(golden, "landmark_softmax"):
        slots = whole_numbers(data["logits"].shape[-1])
        softmax = lambda x, data=data, slots=slots: grouped_softmax(x, data["is_landmark_token"], slots)[0]
        probs, pull = jax.vjp(softmax, data["logits"])
        close(probs, data["probs"])
        close(probs, data["probs_llama_variant"])
        close(pull(data["cotangent"])[0], data["grad_logits"], rtol=1e-3, atol=5e-5)


def test_landmark_layer(golden):
    """Every row by the reference; a row whose landmarks have a period by the fast path, too."""
    for data in files(golden, "landmark_layer"):
        batch, length, width = data["x"].shape
        heads, rotary = int(data["n_head"]), Rotary(base=10_000.0, pairing="interleaved")
        qkv = (data["x"] @ data["c_attn_weight"].T).reshape(batch, length, 3, heads, width // heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        for name, x in (("q", q), ("k", k)):
            close(x.transpose(0, 2, 1, 3), data[name])
        q, k = (rotate(rotary, x, whole_numbers(length)) for x in (q, k))
        for name, x in (("q", q), ("k", k)):
            close(x.transpose(0, 2, 1, 3), data[f"{name}_rot"])
        project = lambda out, data=data: np.asarray(out).reshape(*out.shape[:2], -1) @ data["c_proj_weight"].T
        close(project(landmark_attention(q, k, v, landmarks=data["is_landmark_token"])), data["y"])
        for b, marks in enumerate(data["is_landmark_token"]):
            row, period = slice(b, b + 1), int(np.argmax(marks)) + 1
            if np.array_equal(marks, (np.arange(length) + 1) % period == 0):
                out = landmark_attention(q[row], k[row], v[row], period=period, implementation="xla")
                close(project(out), data["y"][row])
