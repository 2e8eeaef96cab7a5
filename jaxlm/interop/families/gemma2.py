"""Gemma 2 (Gemma team 2024): norms before and after each part, soft caps, every other layer a window."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Keys, Only
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.rms import RmsNorm

FAMILY = Family(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    paper="Gemma team 2024, Gemma 2: Improving Open Language Models at a Practical Size",
    block=Block(mixer=Attention(), ffn=Glu(), norm=RmsNorm(offset=1.0), placement="sandwich"),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=256, tie=True),
                "hidden_act": parts.activation("gelu_pytorch_tanh", paths=()),  # not what the layers use
                "hidden_activation": parts.activation("gelu_pytorch_tanh"),
                "attention_bias": parts.biases(),
                "query_pre_attn_scalar": parts.inverse_root("mixer.scale", 256.0),
                "attn_logit_softcapping": parts.cap("mixer.soft_cap", 50.0),
                "final_logit_softcapping": parts.cap("model.logit_soft_cap", 30.0),
            }
        ),
        Only("use_bidirectional_attention", (False,), "the model is causal"),
        parts.ScaledEmbedding(),
        parts.Windows(lambda c, i: i % 2 == 0, size=4096),
        Rope(),
    ),
    tensors={**parts.tensors(), **parts.sandwich_norms()},
)
