"""Granite 3 MoE (IBM 2024): Granite with experts, each layer's stacked in two tensors."""

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
    model_type="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    paper="IBM 2024, Granite 3.0 Language Models; Shen et al. 2024, Power Scheduler",
    block=Block(mixer=Attention(), ffn=Moe(expert=Glu(), router=Router(score="softmax_top_k"))),
    parts=(
        Keys(
            {
                **parts.keys(),
                "intermediate_size": Key("ffn.expert.hidden"),
                "hidden_act": parts.activation("silu", paths="ffn.expert.activation"),
                "num_local_experts": Key("ffn.experts", default=8, also=("num_experts",)),
                "num_experts_per_tok": Key("ffn.router.top_k", default=2),
                "attention_bias": parts.biases(),
                **parts.multipliers(),
            }
        ),
        Rope(),
    ),
    tensors={
        **parts.tensors(),
        **experts.stacked(parts.LAYER + "block_sparse_moe."),
    },
)
