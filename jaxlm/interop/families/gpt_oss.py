"""GPT-OSS (OpenAI 2025): experts with clamped gates, sink logits, every other layer a window, YaRN unrounded."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys, Only
from jaxlm.interop.layout import Piece, piecewise, plain, transposed
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

E = parts.LAYER + "mlp.experts."

FAMILY = Family(
    model_type="gpt_oss",
    architectures=("GptOssForCausalLM",),
    paper="OpenAI 2025, gpt-oss-120b & gpt-oss-20b Model Card",
    block=Block(
        mixer=Attention(sinks=True),
        ffn=Moe(
            expert=Glu(activation="quick_gelu", up_offset=1.0, bias=True),
            router=Router(score="softmax_top_k", bias=True),
        ),
    ),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=64, default_eps=1e-5),
                "intermediate_size": Key("ffn.expert.hidden"),
                "hidden_act": Key((), str, "silu"),  # not what the experts use
                "attention_bias": parts.biases(True),
                "swiglu_limit": Key("ffn.expert.limit", float, 7.0),
                "num_local_experts": Key("ffn.experts", default=128, also=("num_experts",)),
                "num_experts_per_tok": Key("ffn.router.top_k", default=4, also=("experts_per_token",)),
            }
        ),
        Only("swiglu_alpha", (1.702,), "the gate is x sigmoid(1.702 x)"),
        parts.Windows(lambda c, i: i % 2 == 0, size=128),
        Rope(theta=150_000.0),
    ),
    tensors={
        **parts.ends(),
        **parts.pre_norms(),
        **parts.projections(),
        "mixer/sinks": piecewise(parts.LAYER + "self_attn.sinks", Piece("G R", "(G R)")),
        "ffn/router/kernel": transposed(parts.LAYER + "mlp.router.weight"),
        "ffn/router/bias": plain(parts.LAYER + "mlp.router.bias"),
        "ffn/experts/in": piecewise(E + "gate_up_proj", Piece("E D F P", "E D (F P)")),
        "ffn/experts/in_bias": piecewise(E + "gate_up_proj_bias", Piece("E F P", "E (F P)")),
        "ffn/experts/out": plain(E + "down_proj"),
        "ffn/experts/out_bias": plain(E + "down_proj_bias"),
    },
)
