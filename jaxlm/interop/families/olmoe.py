"""OLMoE (Muennighoff et al. 2024): experts, and one norm over the queries (keys) of all heads."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.interop import experts, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="olmoe",
    architectures=("OlmoeForCausalLM",),
    paper="Muennighoff et al. 2024, OLMoE: Open Mixture-of-Experts Language Models",
    block=Block(mixer=Attention(qk_norm="rms", qk_norm_span="all"), ffn=Moe(expert=Glu())),
    parts=(
        Keys(
            {
                **parts.keys(default_eps=1e-5, qk_norm=True),
                "intermediate_size": Key("ffn.expert.hidden"),
                "hidden_act": parts.activation("silu", paths="ffn.expert.activation"),
                "num_experts": Key("ffn.experts", default=64, also=("num_local_experts",)),
                "num_experts_per_tok": Key("ffn.router.top_k", default=8),
                "norm_topk_prob": Key("ffn.router.normalize", bool, False),
                "attention_bias": parts.biases(),
                "clip_qkv": parts.cap("mixer.qkv_clip"),
            }
        ),
        Rope(),
    ),
    tensors={**parts.tensors(), **parts.joint_qk_norms(), **experts.tensors()},
)
