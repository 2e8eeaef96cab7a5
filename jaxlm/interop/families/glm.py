"""GLM-4 of 2024 (Team GLM 2024): biases on q, k and v, interleaved rotary on half of each head, fused gates."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="glm",
    architectures=("GlmForCausalLM",),
    paper="Team GLM 2024, ChatGLM: A Family of Large Language Models from GLM-130B to GLM-4 All Tools",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=128, default_eps=1.5625e-7),
                "attention_bias": Key("mixer.qkv_bias", bool, True),
            }
        ),
        Rope(pairing="interleaved", fraction=0.5),
    ),
    tensors={**parts.ends(), **parts.pre_norms(), **parts.projections(), **parts.fused_gated()},
)
