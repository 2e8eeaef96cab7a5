"""Zamba's shared block and the adapters, beyond the laws; tests/interop holds the whole to transformers."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Context, Dims
from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.mla import Mla
from jaxlm.mixer.zamba import Zamba
from tests.tiny import close, draw_params

WIDTH = 16
X, E = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).standard_normal((2, 2, 5, WIDTH)))
CONTEXT = Context(positions=jnp.arange(5)[None])
OWN = Attention(heads=4, kv_heads=4)


def test_adapters_are_low_rank_terms_of_the_projections():
    """x (W + A B) with the product of A and B put into the weight, one for each of q, k and v."""
    attention = Attention(heads=4, kv_heads=2, adapter=3)
    p = draw_params(attention.params(Dims(WIDTH)))
    low = p["adapter_in"]
    terms = [jnp.einsum("dr,rgpk->dgpk", low[:, i], p[f"adapter_{name}"]) for i, name in enumerate("qkv")]
    merged = {**p, "qkv": p["qkv"] + jnp.concatenate(terms, 2)}
    plain = dataclasses.replace(attention, adapter=0)
    close(attention(p, X, CONTEXT)[0], plain(merged, X, CONTEXT)[0])
    glu = Glu(hidden=12, adapter=2, bias=True)
    p = draw_params(glu.params(Dims(WIDTH)))
    merged = {**p, "in": p["in"] + jnp.einsum("dr,rfi->dfi", p["in_down"], p["in_up"])}
    for name in ("in_down", "in_up"):
        del merged[name]
    close(glu(p, X, CONTEXT)[0], glu(merged, X, CONTEXT)[0])


def test_the_formula():
    zamba = Zamba(attention=Attention(heads=4, head_dim=6), mixer=OWN, ffn=Glu(hidden=12))
    p, ctx = draw_params(zamba.params(Dims(WIDTH))), dataclasses.replace(CONTEXT, embedded=E)

    def norm(name, x):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"]

    h = zamba.attention(p["attention"], norm("attention_norm", jnp.concatenate((X, E), -1)), ctx)[0]
    t = zamba.ffn(p["ffn"], norm("ffn_norm", h), ctx)[0] @ p["tell"]
    close(zamba(p, X, ctx)[0], OWN(p["mixer"], norm("norm", X + t), ctx)[0])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Zamba(attention=Mla()), "expected attention with the projections of Heads"),
        (lambda: Zamba(ffn=Moe()), "expected a feed-forward that treats each token alone"),
        (lambda: Zamba(share="a/b"), "expected a name without '/'"),
        (lambda: Attention(adapter=-1), r"Attention\.adapter: expected a number >= 0"),
        (lambda: Glu(adapter=-1), r"Glu\.adapter: expected a number >= 0"),
        (lambda: Moe(expert=Glu(adapter=2)), "experts have no adapters"),
        (lambda: Zamba(mixer=OWN)({}, X, CONTEXT), "reads the embeddings"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
