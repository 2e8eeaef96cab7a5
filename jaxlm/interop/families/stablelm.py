"""StableLM (Stability AI 2023-2024): Llama with layer norms and rotary on a quarter of each head."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.layout import plain
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

FAMILY = Family(
    model_type="stablelm",
    architectures=("StableLmForCausalLM",),
    paper="Bellagente et al. 2024, Stable LM 2 1.6B Technical Report",
    block=Block(mixer=Attention(qk_norm_span="heads"), ffn=Glu(), norm=LayerNorm()),
    parts=(
        Keys(
            {
                **parts.keys(eps="layer_norm_eps", default_eps=1e-5),
                "use_qkv_bias": Key("mixer.qkv_bias", bool, False),
                "use_parallel_residual": parts.parallel("parallel_shared", False),
            }
        ),
        parts.HeadNorms("qk_layernorm", LayerNorm(bias=False)),
        Rope(fraction=0.25),
    ),
    tensors={
        **parts.tensors(),
        "mixer/q_norm/scale": plain(parts.LAYER + "self_attn.q_layernorm.norms.{head}.weight"),
        "mixer/k_norm/scale": plain(parts.LAYER + "self_attn.k_layernorm.norms.{head}.weight"),
    },
)
