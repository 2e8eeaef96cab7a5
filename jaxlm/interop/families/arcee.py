"""AFM (Arcee AI 2025): Llama with a squared-ReLU perceptron."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="arcee",
    architectures=("ArceeForCausalLM",),
    paper="Arcee AI 2025, AFM-4.5B; So et al. 2021, Primer (the activation)",
    block=Block(mixer=Attention(), ffn=Mlp()),
    parts=(
        Keys(
            {
                **parts.keys(default_eps=1e-5),
                "hidden_act": parts.activation("relu2"),
                "attention_bias": parts.biases(),
                "mlp_bias": Key("ffn.bias", bool, False),
            }
        ),
        Rope(),
    ),
    tensors={
        **parts.ends(),
        **parts.pre_norms(),
        **parts.projections(),
        **layout.mlp(parts.LAYER + "mlp.up_proj", parts.LAYER + "mlp.down_proj"),
    },
)
