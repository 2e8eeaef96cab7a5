"""T5 (Raffel et al. 2020), T5 1.1 and ByT5 (Xue et al. 2022): one model type, told apart by its settings.

A layer of the decoder is two blocks: self-attention alone, and attention over the encoder with the feed-forward. The
first T5 has ReLU and logits of the embedding times width^-0.5; the later ones have gated GELU and a head of their own.
transformers 5 says ``scale_decoder_outputs`` of the factor, and ties the head unless another is stored; before it,
``tie_word_embeddings`` said both.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.glu import Glu
from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.layout import Layout, Piece, Place
from jaxlm.interop.pair import Pair
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.cross_attention import CrossAttention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.position.t5_bias import T5Bias

PAPER = "Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"
GATED = "gated-"
HEAD = "lm_head.weight"


class CrossLayers:
    """Every layer of a decoder is two blocks, the second with the feed-forward."""

    def read(self, c: Config, draft: Draft) -> None:
        cross = CrossAttention(scale=1.0)
        draft.blocks = [
            block
            for own in draft.blocks
            for block in (dataclasses.replace(own, ffn=None), dataclasses.replace(own, mixer=cross))
        ]

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {"num_decoder_layers": len(blocks) // 2}


class FeedForwards:
    """``feed_forward_proj``, an activation that may be gated, and the hidden width."""

    def read(self, c: Config, draft: Draft) -> None:
        name = c.text("feed_forward_proj", default="relu")
        kind, act = (Glu, name.removeprefix(GATED)) if name.startswith(GATED) else (Mlp, name)
        if name == "gated-gelu":  # so it has always been read, and meant
            act = "gelu_new"
        if act not in parts.ACTIVATIONS:
            raise ConfigError(
                f"config.json: feed_forward_proj = {shown(name)} is not supported; 'relu', 'gated-gelu'..."
            )
        ffn = kind(hidden=c.integer("d_ff", default=2048), activation=parts.ACTIVATIONS[act])
        for i, block in enumerate(draft.blocks):
            if block.ffn is not None:
                draft.set("ffn", ffn, i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        ffn = blocks[-1].ffn
        act = next(theirs for theirs, ours in parts.ACTIVATIONS.items() if ours == ffn.activation)
        name = act if isinstance(ffn, Mlp) else f"{GATED}{act}"
        if isinstance(ffn, Glu) and ffn.activation == "gelu_tanh":
            name = "gated-gelu"
        return {"feed_forward_proj": name, "d_ff": ffn.hidden}


class Head:
    """Whether the head is the embedding, and whether logits are scaled by width^-0.5."""

    def read(self, c: Config, draft: Draft) -> None:
        tied = c.flag("tie_word_embeddings", default=True)
        scaled = c.flag("scale_decoder_outputs", default=tied)
        draft.set("model.tied_head", tied)
        draft.set("model.logit_multiplier", parts.width_of(c) ** -0.5 if scaled else 1.0)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {"tie_word_embeddings": spec.tied_head, "scale_decoder_outputs": spec.logit_multiplier != 1}


KEYS = Keys(
    {
        "vocab_size": Key("model.vocab_size"),
        "d_model": Key("model.width", also=("hidden_size",)),
        "num_heads": Key("mixer.heads", also=("num_attention_heads",)),
        "d_kv": Key("mixer.head_dim", default=64, also=("head_dim",)),
        "layer_norm_epsilon": Key("norm.eps", float, 1e-6),
        "relative_attention_num_buckets": Key("attention.position.buckets", default=32),
        "relative_attention_max_distance": Key("attention.position.max_distance", default=128),
        # Said again, of training, or of an input's usual length: a bias has no last position.
        "dense_act_fn": Key((), str, ""),
        "is_gated_act": Key((), bool, False),
        "dropout_rate": Key((), float, 0.1),
        "n_positions": Key((), default=512),
        "output_past": Key((), bool, True),
    }
)


def attention(stem: str) -> dict[str, Layout]:
    return layout.attention(*(f"{stem}.{name}" for name in "qkvo"))


def feed_forward(stem: str, spec: ModelSpec) -> dict[str, Layout]:
    ffn = spec.layers[0].pattern[-1].ffn
    if isinstance(ffn, Glu):
        return layout.glu(f"{stem}.wi_0", f"{stem}.wi_1", f"{stem}.wo")
    return layout.mlp(f"{stem}.wi", f"{stem}.wo")


def ends(stack: str) -> dict[str, Layout]:
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        "embed/table": layout.plain("shared.weight"),
        "position/t5_bias/table": layout.plain(bias),
        **layout.norm("final_norm", f"{stack}.final_layer_norm"),
        "head/kernel": layout.transposed(HEAD),
    }


def of_encoder(spec: ModelSpec) -> dict[str, Layout]:
    at = "encoder.block.{layer}.layer."
    return {
        **ends("encoder"),
        **layout.norm("mixer_norm", f"{at}0.layer_norm"),
        **attention(f"{at}0.SelfAttention"),
        **layout.norm("ffn_norm", f"{at}1.layer_norm"),
        **feed_forward(f"{at}1.DenseReluDense", spec),
    }


def of_decoder(spec: ModelSpec) -> dict[str, Layout]:
    at = "decoder.block.{layer}.layer."
    stem = f"{at}1.EncDecAttention"
    cross: dict[str, Layout] = {
        **layout.norm("mixer_norm", f"{at}1.layer_norm"),
        "mixer/q": layout.piecewise(f"{stem}.q.weight", Piece("D G R K", "(G R K) D")),
        "mixer/kv": tuple(
            Place(f"{stem}.{name}.weight", (Piece("D G K", "(G K) D", np.s_[:, :, i]),)) for i, name in enumerate("kv")
        ),
        **layout.output(f"{stem}.o"),
    }
    return {
        **ends("decoder"),
        **layout.norm("mixer_norm", f"{at}0.layer_norm"),
        **attention(f"{at}0.SelfAttention"),
        **layout.only("cross_attention", cross),
        **layout.norm("ffn_norm", f"{at}2.layer_norm"),
        **feed_forward(f"{at}2.DenseReluDense", spec),
    }


def own_attention(**more: Any) -> Attention:
    return Attention(scale=1.0, position=T5Bias(bidirectional="mask" in more), **more)


FAMILY = Pair(
    model_type="t5",
    architectures=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    paper=PAPER,
    prefix="",
    # Copies of the embedding, and a table that the first release has and nobody reads.
    buffers=(r"^(en|de)coder\.embed_tokens\.weight$", r"EncDecAttention\.relative_attention_bias\.weight$"),
    head=HEAD,
    encoder=Family(
        model_type="t5",
        architectures=("T5ForConditionalGeneration",),
        paper=PAPER,
        block=Block(mixer=own_attention(mask="bidirectional"), ffn=Mlp()),
        depth=("num_layers", "num_hidden_layers"),
        parts=(KEYS, FeedForwards()),
        model={"tied_head": True},
        tensors=of_encoder,
    ),
    decoder=Family(
        model_type="t5",
        architectures=("T5ForConditionalGeneration",),
        paper=PAPER,
        block=Block(mixer=own_attention(), ffn=Mlp()),
        depth=("num_decoder_layers", "num_layers", "num_hidden_layers"),
        parts=(CrossLayers(), KEYS, FeedForwards(), Head()),
        layer=lambda blocks: [i // 2 for i in range(len(blocks))],
        tensors=of_decoder,
    ),
)
