"""RoBERTa (Liu et al. 2019): BERT's encoder, its positions counted from behind the id of the padding token.

So of ``max_position_embeddings`` rows (514) the first ``pad_token_id + 1`` (2) are never looked up, and the model takes
512 tokens. transformers finds padding by its id; here it is segment 0, whatever tokens stand there.
"""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import encoder, layout, parts
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.layout import Layout
from jaxlm.mixer.attention import Attention
from jaxlm.model.head import HeadTransform
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

L = "roberta.encoder.layer.{layer}."
SELF = L + "attention.self."


def tensors(spec: ModelSpec) -> dict[str, Layout]:
    return {
        **encoder.tensors("roberta.", L),
        **layout.attention(SELF + "query", SELF + "key", SELF + "value", L + "attention.output.dense"),
        **encoder.pooler("roberta."),
        **encoder.masked_head(spec, "lm_head.dense", "lm_head.layer_norm", "lm_head"),
    }


FAMILY = Family(
    model_type="roberta",
    architectures=("RobertaForMaskedLM",),
    paper="Liu et al. 2019, RoBERTa: A Robustly Optimized BERT Pretraining Approach",
    block=Block(
        mixer=Attention(mask="bidirectional", position="learned", qkv_bias=True, out_bias=True),
        ffn=Mlp(bias=True),
        norm=LayerNorm(),
        placement="post",
    ),
    model={"embed_norm": LayerNorm(), "norm": None, "head_bias": True, "head_transform": HeadTransform()},
    parts=(
        encoder.PositionsBehindPadding(),
        Keys({**encoder.keys(), "hidden_act": parts.activation("gelu")}),  # the head's is gelu, whatever is said
        encoder.ABSOLUTE,
        *encoder.ENCODES,
    ),
    tensors=tensors,
    prefix="roberta.",
    renamed={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    optional={"pooler": "roberta.pooler.dense.weight"},
    buffers=(r"\.(position|token_type)_ids$", r"^lm_head\.decoder\.bias$"),
)
