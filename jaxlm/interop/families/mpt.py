"""MPT (MosaicML 2023): ALiBi, no biases anywhere, fused projections."""

from __future__ import annotations

from typing import Any

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

B = "transformer.blocks.{layer}."
LIMITS = (
    Only("alibi", (True,), "positions are ALiBi's"),
    Only("attn_type", ("multihead_attention",), "each query head has its key and value"),
    Only("qk_ln", (False,), "queries and keys are not normalised"),
    Only("prefix_lm", (False,), "the model is causal"),
)


class AttentionConfig:
    """The nested settings of attention.

    ``alibi_bias_max`` counts, as in the code these models were trained with; transformers 5.23 reads it and takes 8
    whatever it is.
    """

    def read(self, c: Config, draft: Draft) -> None:
        own = Config(c.section("attn_config", default={}))
        for limit in LIMITS:
            limit.read(own, draft)
        draft.set("mixer.position.max", own.number("alibi_bias_max", default=8.0))
        draft.set("mixer.scale", own.number("softmax_scale", default=0.0))
        draft.set("mixer.qkv_clip", own.number("clip_qkv", default=0.0))
        draft.set("ffn.hidden", 4 * parts.width_of(c))
        c.integer("max_seq_len", default=2048)  # a bias has no last position
        c.flag("learned_pos_emb", default=True)  # not so

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        mixer = blocks[0].mixer
        own = {"attn_type": "multihead_attention", "alibi": True, "softmax_scale": mixer.scale}
        own["alibi_bias_max"] = parts.whole(mixer.position.max)
        own["clip_qkv"] = mixer.qkv_clip or None
        return {"attn_config": own, "max_seq_len": 2048}


FAMILY = Family(
    model_type="mpt",
    architectures=("MptForCausalLM", "MPTForCausalLM"),
    paper="MosaicML 2023, Introducing MPT-7B",
    block=Block(mixer=Attention(position="alibi"), ffn=Mlp(), norm=LayerNorm(bias=False)),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "d_model": Key("model.width", also=("hidden_size",)),
                "n_heads": Key("mixer.heads", also=("num_attention_heads",)),
                "layer_norm_epsilon": Key("norm.eps", float, 1e-5),
                "tie_word_embeddings": parts.tied(True),
            }
        ),
        AttentionConfig(),
        Only("no_bias", (True,), "the layers have no offsets"),
        Only("norm_type", ("low_precision_layernorm", "layernorm"), "the norms are layer norms"),
        Only("expansion_ratio", (4,), "transformers makes it 4 always"),
        Only("logit_scale", (None,), "transformers ignores it"),
        Only("embedding_fraction", (1.0,), "it is a matter of training"),
    ),
    depth=("n_layers", "num_hidden_layers"),
    prefix="transformer.",
    tensors={
        **layout.ends("transformer.wte", "transformer.norm_f", "lm_head"),
        **layout.norm("mixer_norm", B + "norm_1"),
        **layout.norm("ffn_norm", B + "norm_2"),
        **layout.attention_in_turn(B + "attn.Wqkv", B + "attn.out_proj"),
        **layout.mlp(B + "ffn.up_proj", B + "ffn.down_proj"),
    },
)
