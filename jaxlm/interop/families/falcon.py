"""Falcon (Almazrouei et al. 2023): rotary or ALiBi; one key/value head or groups of them; three ways to place norms."""

from __future__ import annotations

from typing import Any

from jaxlm.core.errors import ConfigError
from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm
from jaxlm.position.alibi import Alibi

H = "transformer.h.{layer}."


class Architecture:
    """Key/value heads, norms and positions: ``new_decoder_architecture`` decides what the other flags mean."""

    def read(self, c: Config, draft: Draft) -> None:
        heads = parts.heads_of(c)
        new, parallel = c.flag("new_decoder_architecture", default=False), c.flag("parallel_attn", default=True)
        multi_query = c.flag("multi_query", default=True)
        groups = c.integer("num_kv_heads", "n_head_kv", default=heads)
        norms = c.integer("num_ln_in_parallel_attn", default=2 if new else 1)
        if new and not parallel:
            raise ConfigError("config.json: new_decoder_architecture needs parallel_attn; allowed: True")
        draft.set("mixer.head_dim", parts.head_dim_of(c))
        draft.set("mixer.kv_heads", groups if new else 1 if multi_query else heads)
        draft.set("residual", "serial" if not parallel else "parallel" if norms == 2 else "parallel_shared")
        if c.flag("alibi", default=False):
            scale = parts.head_dim_of(c) ** -0.5
            draft.set("mixer.position", Alibi(multiplier=scale, rounding="bfloat16"))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        block, mixer = blocks[0], blocks[0].mixer
        new = block.residual == "parallel" or 1 < mixer.kv_heads < mixer.heads
        out = {
            "new_decoder_architecture": new,
            "multi_query": mixer.kv_heads == 1,
            "num_kv_heads": mixer.kv_heads,
            "parallel_attn": block.residual != "serial",
            "alibi": isinstance(mixer.position, Alibi),
        }
        return {**out, "num_ln_in_parallel_attn": 2 if block.residual == "parallel" else 1} if new else out


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    """Parallel parts with a norm each have other names for them."""
    first = "ln_attn" if spec.layers[0].pattern[0].residual == "parallel" else "input_layernorm"
    second = "ln_mlp" if spec.layers[0].pattern[0].residual == "parallel" else "post_attention_layernorm"
    return {
        **layout.ends("transformer.word_embeddings", "transformer.ln_f", "lm_head"),
        **layout.norm("mixer_norm", H + first),
        **layout.norm("ffn_norm", H + second),
        **layout.attention_by_group(H + "self_attention.query_key_value", H + "self_attention.dense"),
        **layout.mlp(H + "mlp.dense_h_to_4h", H + "mlp.dense_4h_to_h"),
    }


FAMILY = Family(
    model_type="falcon",
    architectures=("FalconForCausalLM",),
    paper="Almazrouei et al. 2023, The Falcon Series of Open Language Models",
    block=Block(mixer=Attention(), ffn=Mlp(), norm=LayerNorm()),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "hidden_size": Key("model.width", also=("n_embed",)),
                "num_attention_heads": Key("mixer.heads", also=("n_head",)),
                "layer_norm_epsilon": Key("norm.eps", float, 1e-5),
                "bias": Key(("mixer.qkv_bias", "mixer.out_bias", "ffn.bias"), bool, False),
                "ffn_hidden_size": Key("ffn.hidden", default=lambda c: 4 * parts.width_of(c)),
                "activation": parts.activation("gelu"),
                "tie_word_embeddings": parts.tied(True),
            }
        ),
        Architecture(),
        Rope(),
    ),
    depth=("num_hidden_layers", "n_layer"),
    prefix="transformer.",
    tensors=tensors,
)
