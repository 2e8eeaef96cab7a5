"""Granite 3 MoE (IBM 2024) with a feed-forward that all tokens share, where its width is not 0."""

from __future__ import annotations

from typing import Any

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import experts, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec

S = parts.LAYER + "shared_mlp."


class Shared:
    """The width of what all tokens share."""

    def read(self, c: Config, draft: Draft) -> None:
        if hidden := c.integer("shared_intermediate_size", default=0):
            activation = draft.blocks[0].ffn.expert.activation
            draft.set("ffn.shared", Glu(hidden=hidden, activation=activation))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        shared = blocks[0].ffn.shared
        return {"shared_intermediate_size": shared.hidden if shared else 0}


FAMILY = Family(
    model_type="granitemoeshared",
    architectures=("GraniteMoeSharedForCausalLM",),
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
        Shared(),
        Rope(),
    ),
    tensors={
        **parts.tensors(),
        **experts.stacked(parts.LAYER + "block_sparse_moe."),
        **parts.fused_gated(S + "input_linear", S + "output_linear", "ffn/shared"),
    },
)
