"""BigBird (Zaheer et al. 2020): ends, neighbours and random blocks; or, if its setting says so, full attention.

Outside training transformers lists the first block in place of random ones (`jaxlm.mixer.big_bird`), which is what is
read here; ``jaxlm.replace(model, {"mixer.choice": "drawn"})`` attends as the paper does. The head for the next sentence
that checkpoints of pre-training hold is left out.
"""

from __future__ import annotations

from typing import Any

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import encoder, layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only
from jaxlm.interop.layout import Layout, plain, transposed
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.big_bird import BigBird
from jaxlm.model.head import HeadTransform
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

L = "bert.encoder.layer.{layer}."
COMMON: dict[str, Any] = {"position": "learned", "out_bias": True}


class AttentionType:
    """Blocks or full attention; comes before what sets fields of the mixer."""

    def read(self, c: Config, draft: Draft) -> None:
        c.only("attention_type", ("block_sparse", "original_full"), "there are these two")
        block, random = parts.positive(c, "block_size", 64), parts.positive(c, "num_random_blocks", 3)
        if c.text("attention_type", default="block_sparse") == "block_sparse":
            draft.set("mixer", BigBird(block=block, random=random, choice="first", **COMMON))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        mixer = blocks[0].mixer
        if not isinstance(mixer, BigBird):
            return {"attention_type": "original_full"}
        return {"attention_type": "block_sparse", "block_size": mixer.block, "num_random_blocks": mixer.random}


class Rescaled:
    """Whether embeddings are multiplied by sqrt(width); and the padding that transformers fills blocks with."""

    def read(self, c: Config, draft: Draft) -> None:
        if c.flag("rescale_embeddings", default=False):
            draft.set("model.embed_multiplier", parts.width_of(c) ** 0.5)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {"rescale_embeddings": spec.embed_multiplier != 1, "pad_token_id": 0}


def tensors(spec: ModelSpec) -> dict[str, Layout]:
    own = L + "attention.self."
    return {
        **encoder.tensors("bert.", L),
        **layout.attention(own + "query", own + "key", own + "value", L + "attention.output.dense"),
        "pooler/kernel": transposed("bert.pooler.weight"),
        "pooler/bias": plain("bert.pooler.bias"),
        **encoder.masked_head(
            spec, "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions"
        ),
    }


FAMILY = Family(
    model_type="big_bird",
    architectures=("BigBirdForMaskedLM", "BigBirdForPreTraining"),
    paper="Zaheer et al. 2020, Big Bird: Transformers for Longer Sequences",
    block=Block(
        mixer=Attention(mask="bidirectional", **COMMON), ffn=Mlp(bias=True), norm=LayerNorm(), placement="post"
    ),
    model={
        "embed_norm": LayerNorm(),
        "norm": None,
        "pooler": True,
        "head_bias": True,
        "head_transform": HeadTransform(),
    },
    parts=(
        AttentionType(),
        Keys(
            {
                **encoder.keys(),
                "max_position_embeddings": Key("mixer.position.size", default=4096),
                "hidden_act": parts.activation("gelu_new", paths=("ffn.activation", "model.head_transform.activation")),
                "use_bias": Key("mixer.qkv_bias", bool, True),
            }
        ),
        Rescaled(),
        Only("is_decoder", (False,), "it is an encoder here"),
        Only("add_cross_attention", (False,), "there is no other text to attend to"),
    ),
    tensors=tensors,
    prefix="bert.",
    buffers=(r"\.(position|token_type)_ids$", r"^cls\.predictions\.decoder\.bias$", r"^cls\.seq_relationship\."),
)
