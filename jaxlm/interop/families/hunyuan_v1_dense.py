"""HunYuan 0.5B to 7B (Tencent 2025): Llama with norms of queries and keys after their rotation."""

from __future__ import annotations

from typing import Any

from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec


class StretchedRope:
    """Rotary whose "dynamic" type, where it has an alpha, is a fixed base: theta * alpha^(K / (K - 2))."""

    def read(self, c: Config, draft: Draft) -> None:
        found = Config({**c.section("rope_scaling", default={}), **c.section("rope_parameters", default={})})
        if not (alpha := found.number("alpha", default=0.0)):
            Rope().read(c, draft)
            return
        kind, theta = found.text("rope_type", "type", default="default"), c.number("rope_theta", default=10_000.0)
        if kind != "dynamic":
            raise ConfigError(f"config.json: alpha needs rope_type 'dynamic', got {shown(kind)}")
        c.integer("max_position_embeddings", default=0)  # a fixed base has no last position
        width = draft.blocks[0].mixer.head_dim
        draft.set("mixer.position.base", found.number("rope_theta", default=theta) * alpha ** (width / (width - 2)))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return Rope().write(spec, blocks)


FAMILY = Family(
    model_type="hunyuan_v1_dense",
    architectures=("HunYuanDenseV1ForCausalLM",),
    paper="Tencent Hunyuan team 2025, Hunyuan-7B",
    block=Block(mixer=Attention(qk_norm="rms", qk_norm_rotated=True), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(default_eps=1e-5, qk_norm=True),
                "attention_bias": parts.biases(),
                "eod_token_id": Key((), default=0),  # the tokenizer's
            }
        ),
        Only("use_qk_norm", (None, True), "queries and keys are normalised"),
        Only("use_cla", (None, False), "layers do not share keys"),
        StretchedRope(),
    ),
    tensors={**parts.tensors(), **parts.qk_norms("query_layernorm", "key_layernorm")},
)
