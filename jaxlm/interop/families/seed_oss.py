"""Seed-OSS (ByteDance 2025): Llama with a head width of its own and biases on q, k and v."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="seed_oss",
    architectures=("SeedOssForCausalLM",),
    paper="ByteDance Seed team 2025, Seed-OSS Open-Source Models",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=128),
                "attention_bias": Key("mixer.qkv_bias", bool, True),
                "attention_out_bias": Key("mixer.out_bias", bool, False),
                "mlp_bias": Key("ffn.bias", bool, False),
            }
        ),
        Rope(),
    ),
    tensors=parts.tensors(),
)
