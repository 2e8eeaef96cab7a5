"""GLM-4.5 and 4.6 (GLM team 2025): DeepSeek-V3's experts, rotary on half of each head, norms of queries and keys."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import experts, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.rms import RmsNorm

FAMILY = Family(
    model_type="glm4_moe",
    architectures=("Glm4MoeForCausalLM",),
    paper="GLM-4.5 team 2025, GLM-4.5: Agentic, Reasoning, and Coding (ARC) Foundation Models",
    block=Block(
        mixer=Attention(),
        ffn=Moe(expert=Glu(), shared=Glu(), router=Router(score="sigmoid", correction=True, groups=1, top_groups=1)),
    ),
    parts=(
        Keys(
            {
                **parts.keys(default_eps=1e-5),
                "intermediate_size": Key(()),  # of plain layers
                "moe_intermediate_size": Key("ffn.expert.hidden", default=1408),
                "hidden_act": parts.activation("silu", paths=("ffn.expert.activation", "ffn.shared.activation")),
                "n_routed_experts": Key("ffn.experts", default=128, also=("num_local_experts",)),
                "n_group": Key("ffn.router.groups", default=1),
                "topk_group": Key("ffn.router.top_groups", default=1),
                "num_experts_per_tok": Key("ffn.router.top_k", default=8),
                "norm_topk_prob": Key("ffn.router.normalize", bool, True),
                "routed_scaling_factor": Key("ffn.router.scale", float, 1.0),
                "attention_bias": Key("mixer.qkv_bias", bool, False),
            }
        ),
        Keys({name: Key((), default=0) for name in ("num_nextn_predict_layers", "num_mtp_layers")}),
        experts.FirstDense(1),
        parts.HeadNorms("use_qk_norm", RmsNorm()),
        Rope(fraction=0.5),
    ),
    buffers=(r"rotary_emb\.inv_freq$", r"^model\.layers\.(46|92)\."),  # the heads that predict two tokens on
    tensors={**parts.tensors(), **parts.qk_norms(), **experts.corrected()},
)
