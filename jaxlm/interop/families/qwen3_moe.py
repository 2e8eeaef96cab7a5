"""Qwen 3 MoE (Qwen team 2025): Qwen 3 with experts."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import experts, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    paper="Qwen team 2025, Qwen3 Technical Report",
    block=Block(mixer=Attention(qk_norm="rms"), ffn=Moe(expert=Glu(), router=Router(normalize=False))),
    parts=(
        Keys(
            {
                **parts.keys(qk_norm=True),
                "intermediate_size": Key(()),  # of plain layers
                "moe_intermediate_size": Key("ffn.expert.hidden"),
                "hidden_act": parts.activation("silu", paths="ffn.expert.activation"),
                "num_experts": Key("ffn.experts", also=("num_local_experts",)),
                "num_experts_per_tok": Key("ffn.router.top_k"),
                "norm_topk_prob": Key("ffn.router.normalize", bool, False),
                "attention_bias": parts.biases(),
            }
        ),
        experts.DenseLayers(),
        parts.Windows(listed=False, switch="use_sliding_window", counted=False),
        Rope(),
    ),
    tensors={
        **parts.tensors(),
        **parts.qk_norms(),
        **experts.tensors(),
    },
)
