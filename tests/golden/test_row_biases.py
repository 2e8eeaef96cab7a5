"""Golden vectors of encodings that read queries, keys or data of each token: Music Transformer, CoPE, FoX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.mask import Causal, Window
from jaxlm.core.types import RowBias
from jaxlm.ops.attention import attention
from jaxlm.position.cope import CoPE, contextual_positions
from jaxlm.position.forgetting import Forgetting
from jaxlm.position.relative_skew import RelativeSkew
from tests.golden.test_positions import close, files

implementations = pytest.mark.parametrize("implementation", ["xla", "reference"])


def heads_last(x: np.ndarray) -> jax.Array:
    """[B, H, T, D] -> [B, T, H, D]."""
    return jnp.asarray(x.transpose(0, 2, 1, 3))


def evaluated(bias: RowBias, length: int) -> jax.Array:
    at = jnp.arange(length, dtype=jnp.int32)[None]
    seen = Causal().pointwise(at[:, None, :, None], at[:, None, None, :])
    return jnp.where(seen, bias.rule(bias.queries, bias.keys, bias.heads, at, at, seen), 0.0)


@implementations
def test_music_transformer(golden, implementation):
    for data in files(golden, "music_transformer_skew"):
        q, k, v = (heads_last(data[name]) for name in "qkv")
        length, width = q.shape[1], q.shape[3]
        table = jnp.asarray(data["E"][:, ::-1])  # ours begins with distance 0
        at = jnp.arange(length, dtype=jnp.int32)[None]
        bias = RelativeSkew(distances=length).bias({"table": table}, q, k, at, at)
        close(evaluated(bias, length) * width**0.5, data["S_rel_causal"])
        out = attention(q, k, v, mask=Causal(), bias=bias, implementation=implementation)
        close(out.transpose(0, 2, 1, 3), data["out"])


@implementations
def test_cope(golden, implementation):
    for data in files(golden, "cope"):
        q, k, v = (heads_last(data[name]) for name in "qkv")
        length, table = q.shape[1], jnp.asarray(data["pos_emb"].T)
        at = jnp.arange(length, dtype=jnp.int32)[None]
        seen = at[:, :, None] >= at[:, None]
        products = jnp.einsum("blhk,bthk->bhlt", q, k)
        counted = contextual_positions(products, seen[:, None])
        close(jnp.where(seen, jnp.minimum(counted, len(table) - 1), 0.0), np.where(seen, data["positions"], 0.0))
        bias = CoPE(positions=len(table)).bias({"table": table}, q, k, at, at)
        close(evaluated(bias, length), np.where(seen, data["bias"], 0.0))
        out = attention(q, k, v, mask=Causal(), bias=bias, implementation=implementation)
        close(out.transpose(0, 2, 1, 3), data["out"])


@implementations
def test_forgetting_attention(golden, implementation):
    for data in files(golden, "forgetting_attention"):
        q, k, v, log_f = (jnp.asarray(data[name]) for name in ("q", "k", "v", "log_f"))
        batch, length, heads = log_f.shape
        # ln sigmoid(gate) = ln f; the layer's projection gives these gates of an input that is the gates themselves.
        gates = log_f - jnp.log(-jnp.expm1(log_f))
        params = {"gate": jnp.eye(heads), "gate_bias": jnp.zeros(heads)}
        encoding = Forgetting()
        side = encoding.side(params, gates, None, None)
        at = jnp.arange(length, dtype=jnp.int32)[None]
        bias = encoding.bias(params, q, k, at, at, (side, side))
        for mask, name in ((Causal(), "out"), (Window(int(data["window"])), "out_window")):
            close(attention(q, k, v, mask=mask, bias=bias, implementation=implementation), data[name])


def test_blocks_of_rows_are_all_rows():
    """Beyond one block, with packed rows: values and gradients of the loop equal those of whole rows."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    length = 300
    q, k, v, table = draw(2, length, 4, 8), draw(2, length, 2, 8), draw(2, length, 2, 8), draw(6, 8)
    segments = jnp.asarray(np.repeat([[1, 2, 0], [3, 3, 4]], 100, 1), jnp.int32)

    def loss(implementation, q, k, v, table):
        at = jnp.arange(length, dtype=jnp.int32)[None]
        bias = CoPE(positions=6).bias({"table": table}, q, k, at, at)
        out, lse = attention(
            q, k, v, mask=Causal(), bias=bias, segment_ids=segments, implementation=implementation, return_lse=True
        )
        return jnp.sin(out).sum() + jnp.where(segments[:, None] != 0, lse, 0.0).sum(), out

    found = [
        jax.jit(jax.value_and_grad(lambda *x, name=name: loss(name, *x), (0, 1, 2, 3), has_aux=True))(q, k, v, table)
        for name in ("xla", "reference")
    ]
    for ours, theirs in zip(*(jax.tree.leaves(x) for x in found), strict=True):
        close(ours, theirs, rtol=1e-4, atol=1e-4)
