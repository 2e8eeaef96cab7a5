"""Qwen 2 MoE (Qwen team 2024): Qwen 2 with experts beside one that every token passes, gated."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import experts, layout, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.layout import transposed
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

S = parts.LAYER + "mlp.shared_expert."

FAMILY = Family(
    model_type="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    paper="Qwen team 2024, Qwen2 Technical Report",
    block=Block(
        mixer=Attention(qkv_bias=True),
        ffn=Moe(expert=Glu(), shared=Glu(), shared_gate=True, router=Router(normalize=False)),
    ),
    parts=(
        Keys(
            {
                **parts.keys(),
                "intermediate_size": Key(()),  # of plain layers
                "moe_intermediate_size": Key("ffn.expert.hidden"),
                "hidden_act": parts.activation("silu", paths=("ffn.expert.activation", "ffn.shared.activation")),
                "num_experts": Key("ffn.experts", also=("num_local_experts",)),
                "num_experts_per_tok": Key("ffn.router.top_k"),
                "norm_topk_prob": Key("ffn.router.normalize", bool, False),
                "shared_expert_intermediate_size": Key("ffn.shared.hidden"),
                "qkv_bias": Key("mixer.qkv_bias", bool, True),
            }
        ),
        experts.DenseLayers(),
        parts.Windows(
            lambda c, i: i % 2 == 0 and i < c.integer("max_window_layers", default=28),
            switch="use_sliding_window",
            size=4096,
            counted=False,
        ),
        Rope(),
    ),
    tensors={
        **parts.tensors(),
        **experts.tensors(),
        **layout.glu(S + "gate_proj", S + "up_proj", S + "down_proj", "ffn/shared"),
        "ffn/shared_gate": transposed(parts.LAYER + "mlp.shared_expert_gate.weight"),
    },
)
