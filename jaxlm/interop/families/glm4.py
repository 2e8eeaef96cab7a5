"""GLM-4 of 2025 (Z.ai 2025, GLM-4-0414): GLM with norms before and after each part."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="glm4",
    architectures=("Glm4ForCausalLM",),
    paper="Z.ai 2025, GLM-4-0414",
    block=Block(mixer=Attention(), ffn=Glu(), placement="sandwich"),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=128, default_eps=1.5625e-7),
                "attention_bias": Key("mixer.qkv_bias", bool, True),
            }
        ),
        Rope(pairing="interleaved", fraction=0.5),
    ),
    tensors={
        **parts.ends(),
        **parts.pre_norms(),
        **layout.norm("mixer_out_norm", parts.LAYER + "post_self_attn_layernorm"),
        **layout.norm("ffn_out_norm", parts.LAYER + "post_mlp_layernorm"),
        **parts.projections(),
        **parts.fused_gated(),
    },
)
