"""StarCoder 2 (Lozhkov et al. 2024): grouped queries, perceptrons, biases and windows."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Key, Keys, Only
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

FAMILY = Family(
    model_type="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    paper="Lozhkov et al. 2024, StarCoder 2 and The Stack v2: The Next Generation",
    block=Block(mixer=Attention(), ffn=Mlp(), norm=LayerNorm()),
    parts=(
        Keys(
            {
                **parts.keys(eps="norm_epsilon", default_eps=1e-5, tie=True),
                "hidden_act": parts.activation("gelu_pytorch_tanh"),
                "use_bias": Key(("mixer.qkv_bias", "mixer.out_bias", "ffn.bias"), bool, True),
            }
        ),
        parts.Windows(listed=False),
        Only("norm_type", (None, "layer_norm"), "the norms are layer norms"),
        Only("mlp_type", (None, "default"), "the feed-forward is a perceptron"),
        Rope(),
    ),
    tensors={
        **parts.ends(),
        **parts.pre_norms(),
        **parts.projections(),
        **layout.mlp(parts.LAYER + "mlp.c_fc", parts.LAYER + "mlp.c_proj"),
    },
)
