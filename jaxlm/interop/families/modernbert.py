"""ModernBERT (Warner et al. 2024): a rotary encoder; of three layers one sees all, the others 64 tokens on either side.

The embeddings are normed, and so what the first layer's attention takes is not (placement ``"pre_ffn"``). Each kind of
layer has its rotary base: ``rope_parameters`` by kind in transformers 5, two keys before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxlm.attention.mask import Bidirectional, Window
from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts, rope
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only
from jaxlm.interop.layout import Piece, plain, transposed
from jaxlm.mixer.attention import Attention
from jaxlm.model.head import HeadTransform
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

L = "model.layers.{layer}."
NORMS = ("norm", "model.embed_norm", "model.head_transform.norm")
# The kinds of layers: the key of the base before transformers 5, and the base where nothing is said.
BASES = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def kind_of(block: Block) -> str:
    return "sliding_attention" if isinstance(block.mixer.mask, Window) else "full_attention"


class Layers:
    """Which layers see a window; the first has no norm before its attention."""

    def read(self, c: Config, draft: Draft) -> None:
        span = parts.positive(c, "local_attention", 128)
        every, depth = parts.positive(c, "global_attn_every_n_layers", 3), len(draft.blocks)
        default = ["sliding_attention" if i % every else "full_attention" for i in range(depth)]
        kinds = c.sequence("layer_types", default=default)
        if len(kinds) != depth:
            raise ConfigError(f"config.json: layer_types has {len(kinds)} entries for {depth} layers")
        for i, kind in enumerate(kinds):
            if kind not in BASES:
                raise ConfigError(
                    f"config.json: layer_types[{i}] = {shown(kind)} is not supported; allowed: {', '.join(BASES)}"
                )
            mask = Bidirectional() if kind == "full_attention" else Window(span // 2 + 1, ahead=span // 2)
            draft.set("mixer.mask", mask, i)
        draft.set("placement", "pre_ffn", 0)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        windows = (block.mixer.mask.ahead for block in blocks if isinstance(block.mixer.mask, Window))
        return {"layer_types": [kind_of(block) for block in blocks], "local_attention": 2 * next(windows, 64)}


class Rotations:
    """The rotary encoding of each kind of layer."""

    def read(self, c: Config, draft: Draft) -> None:
        c.integer("max_position_embeddings", default=8192)  # rotations have no last position; scalings may ask for it
        given = c.section("rope_parameters", default={})
        if odd := sorted(set(given) - set(BASES)):
            raise ConfigError(
                f"config.json: rope_parameters has {odd[0]}; allowed: settings for each of {', '.join(BASES)}"
            )
        bases = {kind: c.number(key, default=base) for kind, (key, base) in BASES.items()}
        for i, block in enumerate(draft.blocks):
            kind = kind_of(block)
            own = {"rope_type": "default", "rope_theta": bases[kind], **(given.get(kind) or {})}
            if unknown := sorted(set(own) - rope.KNOWN):
                raise ConfigError(
                    f"config.json: rope_parameters has {unknown[0]} = {shown(own[unknown[0]])}, which is not supported"
                )
            draft.set("mixer.position", rope.read(c, head_dim=parts.head_dim_of(c), given=own), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        found = {kind_of(block): rope.write(block.mixer.position) for block in blocks}
        own = {kind: {"rope_type": "default", "rope_theta": base} for kind, (_, base) in BASES.items()}
        lengths = [rope.training_length(block.mixer.position) for block in blocks]
        return {"rope_parameters": {**own, **found}, "max_position_embeddings": max(lengths)}


def halves(name: str) -> layout.Layout:
    """The gate, then the other part, of a linear layer's offset."""
    return layout.piecewise(name, *(Piece("F", "F", np.s_[..., i]) for i in (0, 1)))


FAMILY = Family(
    model_type="modernbert",
    architectures=("ModernBertForMaskedLM",),
    paper="Warner et al. 2024, Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory "
    "Efficient, and Long Context Finetuning and Inference",
    block=Block(mixer=Attention(mask="bidirectional"), ffn=Glu(activation="gelu"), norm=LayerNorm(bias=False)),
    model={
        "embed_norm": LayerNorm(bias=False),
        "head_transform": HeadTransform(norm=LayerNorm(bias=False), bias=False),
    },
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "hidden_size": Key("model.width"),
                "num_attention_heads": Key("mixer.heads"),
                "intermediate_size": Key("ffn.hidden"),
                "hidden_activation": parts.activation("gelu"),
                "classifier_activation": parts.activation("gelu", paths="model.head_transform.activation"),
                "norm_eps": Key(tuple(f"{at}.eps" for at in NORMS), float, 1e-5),
                "norm_bias": Key(tuple(f"{at}.bias" for at in NORMS), bool, False),
                "attention_bias": parts.biases(),
                "mlp_bias": Key("ffn.bias", bool, False),
                "classifier_bias": Key("model.head_transform.bias", bool, False),
                "decoder_bias": Key("model.head_bias", bool, True),
                "tie_word_embeddings": parts.tied(True),
                # What changes nothing, and what older files say of it.
                "layer_norm_eps": Key((), float, 1e-5),
                "position_embedding_type": Key((), str, "absolute"),
                "initializer_cutoff_factor": Key((), float, 2.0),
                "mlp_dropout": Key((), float, 0.0),
                "classifier_pooling": Key((), str, "cls"),
                "deterministic_flash_attn": Key((), bool, False),
                "reference_compile": Key((), bool, False),
                "repad_logits_with_grad": Key((), bool, False),
                "sparse_prediction": Key((), bool, False),
                "sparse_pred_ignore_index": Key((), int, -100),
                "cls_token_id": Key((), int, 0),
            }
        ),
        Only("rope_scaling", (None,), "rope_parameters has the rotations"),
        Layers(),
        Rotations(),
    ),
    tensors={
        "embed/table": plain("model.embeddings.tok_embeddings.weight"),
        **layout.norm("embed_norm", "model.embeddings.norm"),
        **layout.norm("mixer_norm", L + "attn_norm"),
        **layout.attention_in_turn(L + "attn.Wqkv", L + "attn.Wo"),
        **layout.norm("ffn_norm", L + "mlp_norm"),
        **parts.fused_gated(L + "mlp.Wi", L + "mlp.Wo"),
        "ffn/in_bias": halves(L + "mlp.Wi.bias"),
        "ffn/out_bias": plain(L + "mlp.Wo.bias"),
        **layout.norm("final_norm", "model.final_norm"),
        "head/transform/kernel": transposed("head.dense.weight"),
        "head/transform/bias": plain("head.dense.bias"),
        **layout.norm("head/transform/norm", "head.norm"),
        "head/kernel": transposed("decoder.weight"),
        "head/bias": plain("decoder.bias"),
    },
)
