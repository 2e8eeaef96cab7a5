"""OLMo (Groeneveld et al. 2024): Llama with layer norms that learn nothing; queries, keys and values may be clipped."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

FAMILY = Family(
    model_type="olmo",
    architectures=("OlmoForCausalLM",),
    paper="Groeneveld et al. 2024, OLMo: Accelerating the Science of Language Models",
    block=Block(mixer=Attention(), ffn=Glu(), norm=LayerNorm(gain=False, bias=False)),
    parts=(
        Keys(
            {
                **parts.keys(eps=""),
                "attention_bias": parts.biases(),
                "clip_qkv": parts.cap("mixer.qkv_clip"),
            }
        ),
        Rope(),
    ),
    tensors=parts.tensors(),
)
