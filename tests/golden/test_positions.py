"""Golden vectors of position encodings: rotary tables and rotations, ALiBi, T5's bias, sinusoids, masks.

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
from jaxlm.interop import rope
from jaxlm.interop.config import Config
from jaxlm.ops.landmark import landmark_attention
from jaxlm.position.alibi import Alibi, slopes
from jaxlm.position.rotary import Rotary
from jaxlm.position.sinusoidal import Sinusoidal
from jaxlm.position.t5_bias import T5Bias, bucket
from pallas_kernels.landmark_attention.reference import grouped_softmax
from tests.tiny import jit


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
    return np.asarray(jit(lambda x, positions: rotary.rotate({}, x, positions, None))(x, positions))


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
        frequencies = jit(lambda length, rotary=rotary, width=width: rotary.frequencies(width, length))
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
            close(rotary.frequencies(2 * len(expected), longest), expected, rtol=3e-6, atol=0)


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
            ours = jit(bucket, static_argnums=(1, 2, 3))(distance, buckets, furthest, kind == "bi")
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
