"""Counts and FLOPs against numbers worked out by hand and by XLA; bad models are named in one line."""

from __future__ import annotations

import dataclasses

import jax
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.model import decoder
from jaxlm.model.describe import forward_flops, parameter_count
from jaxlm.model.spec import Block, Group
from tests.tiny import params_of, tiny, tokens_of


def test_numbers_by_hand():
    """Width 16, 4 heads of 4 in 2 key/value groups, hidden 24, vocabulary 13, 3 layers."""
    spec = tiny(repeats=3)
    attention = 16 * (4 + 2 + 2) * 4 + 4 * 4 * 16
    mlp = 2 * 16 * 24
    matmuls = 3 * (attention + mlp) + 16 * 13
    parameters = matmuls + 13 * 16 + 3 * 2 * 16 + 16
    model = jaxlm.LanguageModel(spec)
    assert parameter_count(model) == parameters
    flops = 2 * matmuls + 3 * 4 * 4 * 4 * (100 + 1) / 2
    assert forward_flops(spec, 100) == flops
    assert forward_flops(dataclasses.replace(spec, tied_head=True), 100) == flops
    text = jaxlm.describe(model, 100)
    assert f"parameters: {parameters:,}   blocks: 3" in text and f"{flops:,.0f} forward, {3 * flops:,.0f}" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("group_0/block_0/mixer/qkv ")]
    assert " ".join(row[1:]) == "3 x 16 x 2 x 4 x 4 layers, embed, heads, -, - 1,536"
    rows = [line.split()[-1] for line in text.splitlines()[1:-2]]
    assert sum(int(size.replace(",", "")) for size in rows) == parameters


def test_a_window_bounds_the_keys_that_count():
    window = lambda size: tiny({"mask": {"name": "window", "args": {"size": size}}}, repeats=1)
    difference = forward_flops(window(8), 100) - forward_flops(window(4), 100)
    assert difference == 4 * 4 * 4 * 4
    chunks = tiny({"mask": {"name": "chunked", "args": {"size": 8}}}, repeats=1)
    assert forward_flops(window(8), 100) - forward_flops(chunks, 100) == 4 * 4 * 4 * (8 - 9 / 2)
    causal, both = tiny(repeats=1), tiny({"mask": "bidirectional", "position": "alibi"}, repeats=1)
    assert forward_flops(both, 100) - forward_flops(causal, 100) == 4 * 4 * 4 * (100 - 101 / 2)
    spec = window(8)
    layers = Group(spec.layers[0].pattern, 2, (("0.mixer.mask.size", (4, 8)),))
    twice = sum(forward_flops(window(size), 100) for size in (4, 8)) - 2 * 16 * 13
    assert forward_flops(dataclasses.replace(spec, layers=(layers,)), 100) == twice


@pytest.mark.parametrize("ffn", ["mlp", "glu"])
def test_flops_agree_with_xla(ffn):
    """On a dense model whose attention sees everything, in groups of one (XLA counts the body of a scan once).

    The activation is ReLU, for XLA counts every operation of an erf.
    """
    mixer = {"name": "attention", "args": {"heads": 4, "mask": "bidirectional"}}
    block = Block(mixer=mixer, ffn={"name": ffn, "args": {"activation": "relu"}})
    spec = tiny(layers=(Group((block,)), Group((block,))), width=64, vocab_size=64, remat="none")
    tokens = tokens_of(2, 32)
    compiled = jax.jit(lambda p: decoder.forward(spec, p, tokens).logits).lower(params_of(spec)).compile()
    counted = compiled.cost_analysis()["flops"]
    assert forward_flops(spec, 32) * tokens.size == pytest.approx(counted, rel=0.1)


def attention(**args):
    return tiny(args)


ODD = {"heads": 3, "kv_heads": 0, "head_dim": 4}


BAD = [
    (lambda: attention(heads=3, kv_heads=0), ["16", "3 attention heads", "head_dim"]),
    (lambda: attention(heads=4, kv_heads=3), ["kv_heads", "divisor of heads 4", "3"]),
    (lambda: attention(heads=0), ["heads", "0"]),
    (lambda: attention(head_dim=-1), ["head_dim", "-1"]),
    (lambda: attention(position="rotray"), ["'rotray'", "did you mean 'rotary'", "alibi"]),
    (lambda: attention(qk_norm_span="each"), ["qk_norm_span", "'each'", "all, head, heads"]),
    (lambda: attention(mask={"name": "chunked", "args": {"size": 0}}), ["Chunked.size", "0"]),
    (lambda: attention(position={"name": "alibi", "args": {"max": 0.0}}), ["Alibi.max", "0.0"]),
    (lambda: attention(position={"name": "alibi", "args": {"rounding": "float16"}}), ["Alibi.rounding", "bfloat16"]),
    (lambda: attention(position={"name": "learned", "args": {"offset": -1}}), ["Learned.offset", "-1"]),
    (lambda: attention(implementation="flash"), ["implementation", "'flash'", "reference"]),
    (lambda: attention(head_dim=5, position="rotary"), ["1.0", "head width 5", "even"]),
    (lambda: attention(position={"name": "rotary", "args": {"pairing": "halves"}}), ["did you mean 'half'"]),
    (lambda: attention(mask="casual"), ["did you mean 'causal'"]),
    (lambda: tiny({**ODD, "position": "sinusoidal"}, width=15), ["even", "15"]),
    (lambda: tiny(block={"ffn": {"name": "mlp", "args": {"activation": "gleu"}}}), ["did you mean 'gelu'"]),
    (lambda: tiny(dtype="float8"), ["dtype", "bfloat16", "float16", "float32"]),
    (lambda: tiny(remat="some"), ["remat", "dots"]),
    (lambda: tiny(dropout=1.0), ["dropout", "1.0"]),
    (lambda: tiny(logit_soft_cap=-1.0), ["logit_soft_cap", "-1.0"]),
    (lambda: tiny(vocab_size=0), ["vocab_size"]),
    (lambda: tiny(width="16"), ["ModelSpec.width", "int", "'16'"]),
    (lambda: tiny(repeats=0), ["repeats", "0"]),
    (lambda: tiny(layers=()), ["layers"]),
    (lambda: tiny(layers=(Group((), 1),)), ["pattern"]),
    (lambda: tiny(widht=3), ["widht"]),
]  # fmt: skip


@pytest.mark.parametrize("make, words", BAD, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_bad_models_are_named_in_one_line_before_anything_compiles(make, words):
    with pytest.raises((ConfigError, TypeError)) as caught:
        spec = make()
        jax.eval_shape(lambda: jaxlm.LanguageModel(spec).init(jax.random.key(0), tokens_of(1, 4)))
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_model_wide_encodings_must_agree():
    one = lambda buckets: tiny({"position": {"name": "t5_bias", "args": {"buckets": buckets}}}).layers[0]
    assert "position" in decoder.param_specs(tiny(layers=(one(8), one(8))))
    with pytest.raises(ConfigError, match="'t5_bias' lives once in the model") as caught:
        decoder.param_specs(tiny(layers=(one(8), one(16))))
    assert "\n" not in str(caught.value)
