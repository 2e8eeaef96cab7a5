"""Granite 3 MoE (IBM 2024): Granite with experts, each layer's stacked in two tensors."""

from __future__ import annotations

import numpy as np

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.layout import Piece, piecewise, transposed
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

M = parts.LAYER + "block_sparse_moe."

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
                "embedding_multiplier": parts.multiplier("model.embed_multiplier"),
                "residual_multiplier": parts.multiplier("model.residual_multiplier"),
                "attention_multiplier": parts.multiplier("mixer.scale"),
                "logits_scaling": parts.divisor("model.logit_multiplier"),
            }
        ),
        Rope(),
    ),
    tensors={
        **parts.tensors(),
        "ffn/router/kernel": transposed(M + "router.layer.weight"),
        "ffn/experts/in": piecewise(
            M + "input_linear.weight",
            Piece("E D F", "E F D", np.s_[..., 0]),
            Piece("E D F", "E F D", np.s_[..., 1]),
            axis=1,
        ),
        "ffn/experts/out": piecewise(M + "output_linear.weight", Piece("E F D", "E D F")),
    },
)
