"""Persimmon (Adept 2023): squared ReLU, partial rotary, layer norms on each head's queries and keys, fused by head."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

A = parts.LAYER + "self_attn."

FAMILY = Family(
    model_type="persimmon",
    architectures=("PersimmonForCausalLM",),
    paper="Elsen et al. 2023, Releasing Persimmon-8B",
    block=Block(mixer=Attention(qkv_bias=True, out_bias=True), ffn=Mlp(bias=True), norm=LayerNorm()),
    parts=(
        Keys(
            {
                **parts.keys(eps="layer_norm_eps", default_eps=1e-5, grouped=False),
                "hidden_act": parts.activation("relu2"),
            }
        ),
        parts.HeadNorms("qk_layernorm", LayerNorm(), default=True),
        Rope(fraction=0.5),
    ),
    tensors={
        **parts.ends("model.final_layernorm"),
        **parts.pre_norms(),
        **layout.attention_by_group(A + "query_key_value", A + "dense"),
        **parts.qk_norms("q_layernorm", "k_layernorm"),
        **layout.mlp(parts.LAYER + "mlp.dense_h_to_4h", parts.LAYER + "mlp.dense_4h_to_h"),
    },
)
