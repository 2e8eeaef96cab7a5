"""RecurrentGemma (Botev et al. 2024): Griffin's recurrent blocks, and attention to a window in every third layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlm.attention.mask import Window
from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts, state_space
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only
from jaxlm.interop.layout import Piece, piecewise, plain
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.rg_lru import RgLru
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.rms import RmsNorm

T, M = parts.LAYER + "temporal_block.", parts.LAYER + "mlp_block."
KINDS = {"recurrent": RgLru(), "attention": Attention(out_bias=True, mask=Window(2048))}


class BlockTypes:
    """Which layers recur and which attend: a list that is repeated."""

    def read(self, c: Config, draft: Draft) -> None:
        kinds = c.sequence("block_types", "_block_types", default=["recurrent", "recurrent", "attention"])
        if not kinds or any(kind not in KINDS for kind in kinds):
            odd = next((kind for kind in kinds if kind not in KINDS), kinds)
            raise ConfigError(f"config.json: block_types has {shown(odd)}; allowed: {', '.join(KINDS)}")
        draft.blocks = [
            dataclasses.replace(block, mixer=KINDS[kinds[i % len(kinds)]]) for i, block in enumerate(draft.blocks)
        ]
        draft.set("attention.head_dim", parts.head_dim_of(c))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        kinds = ["attention" if isinstance(block.mixer, Attention) else "recurrent" for block in blocks]
        period = next(p for p in range(1, len(kinds) + 1) if all(k == kinds[i % p] for i, k in enumerate(kinds)))
        return {"block_types": kinds[:period]}


def gate(ours: str, theirs: str) -> dict[str, layout.Layout]:
    return {
        f"mixer/{ours}": plain(f"{T}rg_lru.{theirs}_weight"),
        f"mixer/{ours}_bias": plain(f"{T}rg_lru.{theirs}_bias"),
    }


def arm(ours: str, theirs: str) -> dict[str, layout.Layout]:
    return {
        f"mixer/{ours}": piecewise(f"{T}{theirs}.weight", Piece("D H W", "(H W) D")),
        f"mixer/{ours}_bias": piecewise(f"{T}{theirs}.bias", Piece("H W", "(H W)")),
    }


RECURRENT = {
    **arm("gate", "linear_y"),
    **arm("in", "linear_x"),
    "mixer/conv": piecewise(T + "conv_1d.weight", Piece("N H W", "(H W) () N", state_space.REVERSED)),
    "mixer/conv_bias": piecewise(T + "conv_1d.bias", Piece("H W", "(H W)")),
    **gate("input_gate", "input_gate"),
    **gate("recurrence_gate", "recurrent_gate"),
    "mixer/decay": piecewise(T + "rg_lru.recurrent_param", Piece("H W", "(H W)")),
    "mixer/out": piecewise(T + "linear_out.weight", Piece("H W D", "D (H W)")),
    "mixer/out_bias": plain(T + "linear_out.bias"),
}

FAMILY = Family(
    model_type="recurrent_gemma",
    architectures=("RecurrentGemmaForCausalLM",),
    paper="Botev et al. 2024, RecurrentGemma: Moving Past Transformers for Efficient Open Language Models",
    block=Block(mixer=RgLru(), ffn=Glu(bias=True, activation="gelu_tanh"), norm=RmsNorm(offset=1.0)),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "hidden_size": Key("model.width"),
                "rms_norm_eps": Key("norm.eps", float, 1e-6),
                "tie_word_embeddings": parts.tied(True),
                "intermediate_size": Key("ffn.hidden", int, 7680, lambda both: both // 2, lambda one: 2 * one),
                "logits_soft_cap": parts.cap("model.logit_soft_cap", 30.0),
            }
        ),
        BlockTypes(),
        Keys(
            {
                "num_attention_heads": Key(("attention.heads", "rg_lru.heads")),
                "num_key_value_heads": Key("attention.kv_heads", default=parts.heads_of),
                "attention_bias": Key("attention.qkv_bias", bool, False),
                "attention_window_size": Key("attention.mask.size", default=2048),
                "lru_width": Key("rg_lru.width", default=parts.width_of),
                "conv1d_width": Key("rg_lru.conv", default=4),
                "head_dim": Key((), default=0),  # what the heads make of the width
                **state_space.unused(w_init_variance_scale=0.01, final_w_init_variance_scale=0.0),
            }
        ),
        Only("hidden_activation", ("gelu_pytorch_tanh",), "it belongs to the layer"),
        parts.ScaledEmbedding("bfloat16"),
        Rope(fraction=0.5),
    ),
    tensors={
        **parts.ends("model.final_norm"),
        **layout.norm("mixer_norm", parts.LAYER + "temporal_pre_norm"),
        **layout.norm("ffn_norm", parts.LAYER + "channel_pre_norm"),
        **layout.glu(M + "gate_proj", M + "up_proj", M + "down_proj"),
        **layout.only("attention", layout.attention(T + "q_proj", T + "k_proj", T + "v_proj", T + "o_proj")),
        **layout.only("rg_lru", RECURRENT),
    },
)
