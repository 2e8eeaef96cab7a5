"""Nemotron 4 and Minitron (NVIDIA 2024): layer norms that store gain less one, squared ReLU, partial rotary."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

FAMILY = Family(
    model_type="nemotron",
    architectures=("NemotronForCausalLM",),
    paper="Parmar et al. 2024, Nemotron-4 15B Technical Report",
    block=Block(mixer=Attention(), ffn=Mlp(), norm=LayerNorm(offset=1.0)),
    parts=(
        Keys(
            {
                **parts.keys(eps="norm_eps", default_eps=1e-5),
                "hidden_act": parts.activation("relu2"),
                "attention_bias": parts.biases(),
                "mlp_bias": Key("ffn.bias", bool, False),
            }
        ),
        Rope(fraction=0.5),
    ),
    tensors={
        **parts.ends(),
        **parts.pre_norms(),
        **parts.projections(),
        **layout.mlp(parts.LAYER + "mlp.up_proj", parts.LAYER + "mlp.down_proj"),
    },
)
