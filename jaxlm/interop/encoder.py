"""Parts of settings that encoders share: the keys and tensors of the BERT form, and the head of a masked model."""

from __future__ import annotations

from typing import Any

from jaxlm.core.errors import ConfigError
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Key, Keys, Only
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.position.learned import Learned

# Of every encoder that could have been something else.
ENCODES = (
    Only("is_decoder", (False,), "it is an encoder here"),
    Only("add_cross_attention", (False,), "there is no other text to attend to"),
)
ABSOLUTE = Only("position_embedding_type", (None, "absolute"), "positions are learned, one vector each")


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


class PositionsBehindPadding:
    """Learned positions count from behind the id of the padding token, as RoBERTa's do.

    There, the position of a token is the number of tokens up to it that are not padding, plus that id; which is what
    `Learned.offset` and positions that count real tokens (segment 0 is padding) come to.
    """

    def read(self, c: Config, draft: Draft) -> None:
        offset = c.integer("pad_token_id", default=1) + 1
        rows = c.integer("max_position_embeddings", default=512)
        if rows <= offset or offset < 1:
            raise ConfigError(
                f"config.json: max_position_embeddings = {rows} has no row behind pad_token_id = {offset - 1}"
            )
        draft.set("mixer.position", Learned(size=rows - offset, offset=offset))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        position = blocks[0].mixer.position
        return {"pad_token_id": position.offset - 1, "max_position_embeddings": position.size + position.offset}


def pooler(stem: str) -> dict[str, layout.Layout]:
    """The layer of the first token, below ``stem``."""
    return {
        "pooler/kernel": layout.transposed(stem + "pooler.dense.weight"),
        "pooler/bias": layout.plain(stem + "pooler.dense.bias"),
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
