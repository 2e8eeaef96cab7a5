"""dots.llm1 (rednote-hilab 2025): Qwen 3's attention with DeepSeek-V3's experts."""

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
    model_type="dots1",
    architectures=("Dots1ForCausalLM",),
    paper="Huo et al. 2025, dots.llm1 Technical Report",
    block=Block(
        mixer=Attention(qk_norm="rms"),
        ffn=Moe(expert=Glu(), shared=Glu(), router=Router(score="sigmoid", correction=True, groups=1, top_groups=1)),
    ),
    parts=(
        Keys(
            {
                **parts.keys(qk_norm=True),
                "intermediate_size": Key(()),  # of plain layers
                "moe_intermediate_size": Key("ffn.expert.hidden", default=1408),
                "hidden_act": parts.activation("silu", paths=("ffn.expert.activation", "ffn.shared.activation")),
                "n_routed_experts": Key("ffn.experts", also=("num_local_experts",)),
                "n_group": Key("ffn.router.groups", default=1),
                "topk_group": Key("ffn.router.top_groups", default=1),
                "num_experts_per_tok": Key("ffn.router.top_k"),
                "norm_topk_prob": Key("ffn.router.normalize", bool, False),
                "routed_scaling_factor": Key("ffn.router.scale", float, 1.0),
                "attention_bias": parts.biases(),
            }
        ),
        experts.FirstDense(0),
        parts.Windows(lambda c, i: i >= c.integer("max_window_layers", default=62), size=4096),
        Rope(),
    ),
    tensors={**parts.tensors(), **parts.qk_norms(), **experts.corrected()},
)
