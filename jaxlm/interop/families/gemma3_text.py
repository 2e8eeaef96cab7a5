"""Gemma 3 (Gemma team 2025), text: five layers of windows to one of full attention, each with its base."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Keys, Only
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.rms import RmsNorm

FAMILY = Family(
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    paper="Gemma team 2025, Gemma 3 Technical Report",
    block=Block(
        mixer=Attention(qk_norm=RmsNorm(offset=1.0)), ffn=Glu(), norm=RmsNorm(offset=1.0), placement="sandwich"
    ),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=256, tie=True, qk_norm=True),
                "hidden_act": parts.activation("gelu_pytorch_tanh", paths=()),  # not what the layers use
                "hidden_activation": parts.activation("gelu_pytorch_tanh"),
                "attention_bias": parts.biases(),
                "query_pre_attn_scalar": parts.inverse_root("mixer.scale", 256.0),
                "attn_logit_softcapping": parts.cap("mixer.soft_cap"),
                "final_logit_softcapping": parts.cap("model.logit_soft_cap"),
            }
        ),
        Only("use_bidirectional_attention", (False,), "the model is causal"),
        parts.ScaledEmbedding(),
        parts.Windows(lambda c, i: bool((i + 1) % parts.positive(c, "sliding_window_pattern", 6)), size=4096),
        Rope(theta=1_000_000.0, local="rope_local_base_freq"),
    ),
    tensors={**parts.tensors(), **parts.sandwich_norms(), **parts.qk_norms()},
)
