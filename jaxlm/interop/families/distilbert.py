"""DistilBERT (Sanh et al. 2019): half of BERT's layers, without types of tokens and without a pooler.

Positions are read from the file whether they were learned or sines, and are learned here.
"""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.layout import plain, transposed
from jaxlm.mixer.attention import Attention
from jaxlm.model.head import HeadTransform
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

L = "distilbert.transformer.layer.{layer}."
AT, OWN = "distilbert.embeddings.", L + "attention."
NORM = LayerNorm(eps=1e-12)  # which no key says

FAMILY = Family(
    model_type="distilbert",
    architectures=("DistilBertForMaskedLM",),
    paper="Sanh et al. 2019, DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
    block=Block(
        mixer=Attention(mask="bidirectional", position="learned", qkv_bias=True, out_bias=True),
        ffn=Mlp(bias=True),
        norm=NORM,
        placement="post",
    ),
    model={"embed_norm": NORM, "norm": None, "head_bias": True, "head_transform": HeadTransform(norm=NORM)},
    depth=("n_layers", "num_hidden_layers"),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "dim": Key("model.width", also=("hidden_size",)),
                "n_heads": Key("mixer.heads", also=("num_attention_heads",)),
                "hidden_dim": Key("ffn.hidden"),
                "max_position_embeddings": Key("mixer.position.size", default=512),
                "activation": parts.activation("gelu", paths=("ffn.activation", "model.head_transform.activation")),
                "sinusoidal_pos_embds": Key((), bool, False),
                "tie_weights_": Key((), bool, True),  # of the first releases
                "qa_dropout": Key((), float, 0.1),
                "seq_classif_dropout": Key((), float, 0.2),
                "tie_word_embeddings": parts.tied(True),
            }
        ),
    ),
    tensors={
        "embed/table": plain(AT + "word_embeddings.weight"),
        "position/learned/table": plain(AT + "position_embeddings.weight"),
        **layout.norm("embed_norm", AT + "LayerNorm"),
        **layout.attention(OWN + "q_lin", OWN + "k_lin", OWN + "v_lin", OWN + "out_lin"),
        **layout.norm("mixer_norm", L + "sa_layer_norm"),
        **layout.mlp(L + "ffn.lin1", L + "ffn.lin2"),
        **layout.norm("ffn_norm", L + "output_layer_norm"),
        "head/transform/kernel": transposed("vocab_transform.weight"),
        "head/transform/bias": plain("vocab_transform.bias"),
        **layout.norm("head/transform/norm", "vocab_layer_norm"),
        "head/kernel": transposed("vocab_projector.weight"),
        "head/bias": plain("vocab_projector.bias"),
    },
    prefix="distilbert.",
    buffers=(r"\.position_ids$",),
)
