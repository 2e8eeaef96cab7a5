"""BERT (Devlin et al. 2018): the encoder that masked tokens are learned from.

A checkpoint's pooler is kept where it is stored, which config.json does not tell. The head for the next sentence that
checkpoints of pre-training hold is left out. Names of the first conversions ("gamma", "beta") are read. Positions count
real tokens, so a row that is padded on the left has other logits than in transformers, whose positions count padding.
"""

from __future__ import annotations

from typing import Any

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import encoder, layout, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.layout import Layout
from jaxlm.mixer.attention import Attention
from jaxlm.model.head import HeadTransform
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

L = "bert.encoder.layer.{layer}."
SELF = L + "attention.self."
HEAD: dict[str, Any] = {"head_bias": True, "head_transform": HeadTransform()}


def tensors(spec: ModelSpec) -> dict[str, Layout]:
    return {
        **encoder.tensors("bert.", L),
        **layout.attention(SELF + "query", SELF + "key", SELF + "value", L + "attention.output.dense"),
        **encoder.pooler("bert."),
        **encoder.masked_head(
            spec, "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions"
        ),
    }


FAMILY = Family(
    model_type="bert",
    architectures=("BertForMaskedLM", "BertForPreTraining"),
    paper="Devlin et al. 2018, BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    block=Block(
        mixer=Attention(mask="bidirectional", position="learned", qkv_bias=True, out_bias=True),
        ffn=Mlp(bias=True),
        norm=LayerNorm(),
        placement="post",
    ),
    model={"embed_norm": LayerNorm(), "norm": None, **HEAD},
    parts=(
        Keys(
            {
                **encoder.keys(),
                "max_position_embeddings": Key("mixer.position.size", default=512),
                "hidden_act": parts.activation("gelu", paths=("ffn.activation", "model.head_transform.activation")),
            }
        ),
        encoder.ABSOLUTE,
        *encoder.ENCODES,
    ),
    tensors=tensors,
    prefix="bert.",
    renamed={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    optional={"pooler": "bert.pooler.dense.weight"},
    buffers=(r"\.(position|token_type)_ids$", r"^cls\.predictions\.decoder\.bias$", r"^cls\.seq_relationship\."),
)
