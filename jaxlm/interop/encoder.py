"""Parts of settings that encoders share: the keys and tensors of the BERT form, and the head of a masked model."""

from __future__ import annotations

from jaxlm.interop import layout, parts
from jaxlm.interop.family import Key, Keys
from jaxlm.model.spec import ModelSpec


def keys() -> Keys:
    """The settings that encoders after BERT have in common."""
    return Keys(
        {
            "vocab_size": Key("model.vocab_size"),
            "hidden_size": Key("model.width"),
            "num_attention_heads": Key("mixer.heads"),
            "intermediate_size": Key("ffn.hidden"),
            "layer_norm_eps": Key(("norm.eps", "model.embed_norm.eps", "model.head_transform.norm.eps"), float, 1e-12),
            "type_vocab_size": Key("model.token_types", default=2),
            "tie_word_embeddings": parts.tied(True),
        }
    )


def tensors(stem: str, layer: str) -> dict[str, layout.Layout]:
    """BERT's embeddings below ``stem``, and of each ``layer`` the norms and the feed-forward."""
    at = stem + "embeddings."
    return {
        "embed/table": layout.plain(at + "word_embeddings.weight"),
        "embed/types": layout.plain(at + "token_type_embeddings.weight"),
        "position/learned/table": layout.plain(at + "position_embeddings.weight"),
        **layout.norm("embed_norm", at + "LayerNorm"),
        **layout.norm("mixer_norm", layer + "attention.output.LayerNorm"),
        **layout.norm("ffn_norm", layer + "output.LayerNorm"),
        **layout.mlp(layer + "intermediate.dense", layer + "output.dense"),
    }


def masked_head(spec: ModelSpec, dense: str, norm: str, head: str) -> dict[str, layout.Layout]:
    """The head of a masked language model. Untied, its bias is stored twice, and the decoder's is the one in use."""
    bias = layout.plain(f"{head}.bias")
    return {
        "head/transform/kernel": layout.transposed(f"{dense}.weight"),
        "head/transform/bias": layout.plain(f"{dense}.bias"),
        **layout.norm("head/transform/norm", norm),
        "head/kernel": layout.transposed(f"{head}.decoder.weight"),
        "head/bias": bias if spec.tied_head else bias + layout.plain(f"{head}.decoder.bias"),
    }
