"""Longformer (Beltagy et al. 2020): a window for most tokens, global tokens with projections of their own.

Which tokens are global is not in config.json: transformers takes it with every call, as ``global_attention_mask``, and
without one there are none. Here it is a setting of the model, by position:

    model, params = jaxlm.load_hf(folder)
    model = jaxlm.replace(model, {"mixer.global_tokens": (0,)})      # the first token of each document

which a saved config.json keeps as ``global_attention_positions``, a key of ours that transformers passes over.
"""

from __future__ import annotations

from typing import Any

from jaxlm.attention.mask import Window
from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import encoder, layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.layout import Layout
from jaxlm.mixer.longformer import Longformer
from jaxlm.model.head import HeadTransform
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

L = "longformer.encoder.layer.{layer}."


class Spans:
    """The window of each layer, half of it on either side, or one for all; and the global tokens."""

    def read(self, c: Config, draft: Draft) -> None:
        spans = c.look_up("attention_window", (int, list), 512)
        depth = len(draft.blocks)
        spans = [spans] * depth if isinstance(spans, int) else spans
        if len(spans) != depth:
            raise ConfigError(f"config.json: attention_window has {len(spans)} entries for {depth} layers")
        for i, span in enumerate(spans):
            if not isinstance(span, int) or isinstance(span, bool) or span < 1 or span % 2:
                raise ConfigError(f"config.json: attention_window should be positive and even, got {shown(span)}")
            draft.set("mixer.mask", Window(span // 2 + 1, ahead=span // 2), i)
        draft.set("mixer.global_tokens", c.sequence("global_attention_positions", default=[]))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        out: dict[str, Any] = {"attention_window": [2 * block.mixer.mask.ahead for block in blocks]}
        if chosen := blocks[0].mixer.global_tokens:
            out["global_attention_positions"] = list(chosen)
        return out


def tensors(spec: ModelSpec) -> dict[str, Layout]:
    def attention(kind: str) -> dict[str, Layout]:
        q, k, v = (f"{L}attention.self.{name}{kind}" for name in ("query", "key", "value"))
        return layout.attention(q, k, v, L + "attention.output.dense")

    second = attention("_global")
    return {
        **encoder.tensors("longformer.", L),
        **attention(""),
        "mixer/globals/qkv": second["mixer/qkv"],
        "mixer/globals/qkv_bias": second["mixer/qkv_bias"],
        **encoder.masked_head(spec, "lm_head.dense", "lm_head.layer_norm", "lm_head"),
    }


FAMILY = Family(
    model_type="longformer",
    architectures=("LongformerForMaskedLM",),
    paper="Beltagy et al. 2020, Longformer: The Long-Document Transformer",
    block=Block(mixer=Longformer(qkv_bias=True, out_bias=True), ffn=Mlp(bias=True), norm=LayerNorm(), placement="post"),
    model={"embed_norm": LayerNorm(), "norm": None, "head_bias": True, "head_transform": HeadTransform()},
    parts=(
        encoder.PositionsBehindPadding(),
        Spans(),
        Keys({**encoder.keys(), "hidden_act": parts.activation("gelu"), "onnx_export": Key((), bool, False)}),
    ),
    tensors=tensors,
    prefix="longformer.",
    buffers=(r"\.position_ids$", r"^longformer\.pooler\.", r"^lm_head\.decoder\.bias$"),
)
