"""Mixtral (Jiang et al. 2024): Mistral with eight experts, two for each token."""

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
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    paper="Jiang et al. 2024, Mixtral of Experts",
    block=Block(mixer=Attention(), ffn=Moe(expert=Glu(), router=Router(normalize=True))),
    parts=(
        Keys(
            {
                **parts.keys(default_eps=1e-5),
                "intermediate_size": Key("ffn.expert.hidden"),
                "hidden_act": parts.activation("silu", paths="ffn.expert.activation"),
                "num_local_experts": Key("ffn.experts", default=8, also=("num_experts",)),
                "num_experts_per_tok": Key("ffn.router.top_k", default=2),
            }
        ),
        parts.Windows(listed=False),
        Rope(theta=1_000_000.0),
    ),
    tensors={**parts.tensors(), **experts.tensors(parts.LAYER + "block_sparse_moe.", "w1", "w3", "w2")},
)
