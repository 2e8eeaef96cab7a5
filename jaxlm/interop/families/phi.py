"""Phi 1 to 2 (Gunasekar et al. 2023): attention and perceptron in parallel behind one norm, partial rotary."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

FAMILY = Family(
    model_type="phi",
    architectures=("PhiForCausalLM",),
    paper="Gunasekar et al. 2023, Textbooks Are All You Need",
    block=Block(
        mixer=Attention(qkv_bias=True, out_bias=True),
        ffn=Mlp(bias=True),
        norm=LayerNorm(),
        residual="parallel_shared",
    ),
    model={"head_bias": True},
    parts=(
        Keys(
            {
                **parts.keys(eps="layer_norm_eps", default_eps=1e-5),
                "hidden_act": parts.activation("gelu_new"),
            }
        ),
        parts.HeadNorms("qk_layernorm", LayerNorm()),
        Rope(fraction=0.5),
    ),
    tensors={
        **parts.ends("model.final_layernorm"),
        **layout.norm("mixer_norm", parts.LAYER + "input_layernorm"),
        **parts.projections("dense"),
        **parts.qk_norms("q_layernorm", "k_layernorm"),
        **layout.mlp(parts.LAYER + "mlp.fc1", parts.LAYER + "mlp.fc2"),
    },
)
