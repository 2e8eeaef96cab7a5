"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): parallel parts, partial rotary, fused by head."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

L = "gpt_neox.layers.{layer}."

FAMILY = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    paper="Black et al. 2022, GPT-NeoX-20B: An Open-Source Autoregressive Language Model",
    block=Block(mixer=Attention(), ffn=Mlp(bias=True), norm=LayerNorm()),
    parts=(
        Keys(
            {
                **parts.keys(eps="layer_norm_eps", default_eps=1e-5, grouped=False),
                "num_key_value_heads": Key((), default=0),  # there are as many as query heads
                "hidden_act": parts.activation("gelu"),
                "attention_bias": parts.biases(True),
                "use_parallel_residual": parts.parallel("parallel", True),
            }
        ),
        Rope(fraction=0.25),
    ),
    prefix="gpt_neox.",
    buffers=(r"rotary_emb\.inv_freq$", r"\.attention\.(masked_)?bias$"),
    tensors={
        **layout.ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"),
        **layout.norm("mixer_norm", L + "input_layernorm"),
        **layout.norm("ffn_norm", L + "post_attention_layernorm"),
        **layout.attention_by_group(L + "attention.query_key_value", L + "attention.dense"),
        **layout.mlp(L + "mlp.dense_h_to_4h", L + "mlp.dense_4h_to_h"),
    },
)
