"""Helium 1 (Kyutai 2025): Llama with interleaved rotary."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="helium",
    architectures=("HeliumForCausalLM",),
    paper="Kyutai 2025, Helium 1: a modular and multilingual LLM",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=128, default_eps=1e-8),
                "attention_bias": Key("mixer.qkv_bias", bool, False),
                "mlp_bias": Key("ffn.bias", bool, False),
            }
        ),
        Rope(pairing="interleaved", theta=100_000.0),
    ),
    tensors=parts.tensors(),
)
