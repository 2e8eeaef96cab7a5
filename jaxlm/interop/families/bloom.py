"""BLOOM (BigScience 2022): ALiBi, a norm of the embeddings, fused by head."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

H = "transformer.h.{layer}."

FAMILY = Family(
    model_type="bloom",
    architectures=("BloomForCausalLM",),
    paper="BigScience 2022, BLOOM: A 176B-Parameter Open-Access Multilingual Language Model",
    block=Block(
        mixer=Attention(position="alibi", qkv_bias=True, out_bias=True),
        ffn=Mlp(bias=True, activation="gelu_tanh"),
        norm=LayerNorm(),
    ),
    model={"embed_norm": LayerNorm()},
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "hidden_size": Key("model.width", also=("n_embed",)),
                "n_head": Key("mixer.heads", also=("num_attention_heads",)),
                "layer_norm_epsilon": Key(("norm.eps", "model.embed_norm.eps"), float, 1e-5),
                "apply_residual_connection_post_layernorm": Key(
                    "placement",
                    bool,
                    False,
                    lambda on: "normed" if on else "pre",
                    lambda placement: placement == "normed",
                ),
                "tie_word_embeddings": parts.tied(True),
            }
        ),
    ),
    depth=("n_layer", "num_hidden_layers"),
    prefix="transformer.",
    tensors={
        **layout.ends("transformer.word_embeddings", "transformer.ln_f", "lm_head"),
        **layout.norm("embed_norm", "transformer.word_embeddings_layernorm"),
        **layout.norm("mixer_norm", H + "input_layernorm"),
        **layout.norm("ffn_norm", H + "post_attention_layernorm"),
        **layout.attention_by_group(H + "self_attention.query_key_value", H + "self_attention.dense"),
        **layout.mlp(H + "mlp.dense_h_to_4h", H + "mlp.dense_4h_to_h"),
    },
)
