"""Granite 3 (IBM 2024): Llama with multipliers of embeddings, residuals, attention and logits."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="granite",
    architectures=("GraniteForCausalLM",),
    paper="IBM 2024, Granite 3.0 Language Models; Shen et al. 2024, Power Scheduler",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(),
                "attention_bias": parts.biases(),
                "mlp_bias": Key("ffn.bias", bool, False),
                **parts.multipliers(),
            }
        ),
        Rope(),
    ),
    tensors=parts.tensors(),
)
