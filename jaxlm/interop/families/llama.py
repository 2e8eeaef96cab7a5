"""Llama 1 to 3 (Touvron et al. 2023; Llama team 2024): RMS norm, SwiGLU, rotary, grouped queries."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    paper="Llama team 2024, The Llama 3 Herd of Models",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(),
                "attention_bias": parts.biases(),
                "mlp_bias": Key("ffn.bias", bool, False),
            }
        ),
        Rope(),
    ),
    tensors=parts.tensors(),
)
