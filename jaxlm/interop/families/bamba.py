"""Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba-2 with attention in some layers, and SwiGLU in all."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts, state_space
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.model.spec import Block, ModelSpec

F = parts.LAYER + "feed_forward."


class AttentionLayers:
    """Which layers attend: a list of their numbers."""

    def read(self, c: Config, draft: Draft) -> None:
        chosen, depth = c.sequence("attn_layer_indices", default=[]), len(draft.blocks)
        if odd := [one for one in chosen if one not in range(depth)]:
            raise ConfigError(f"config.json: attn_layer_indices has {shown(odd[0])}; allowed: 0 to {depth - 1}")
        for i in chosen:
            attention = Attention(head_dim=parts.head_dim_of(c))
            draft.blocks[i] = dataclasses.replace(draft.blocks[i], mixer=attention)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {"attn_layer_indices": [i for i, block in enumerate(blocks) if isinstance(block.mixer, Attention)]}


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    return {
        **parts.ends("model.final_layernorm"),
        **layout.norm("mixer_norm", parts.LAYER + "input_layernorm"),
        **layout.norm("ffn_norm", parts.LAYER + "pre_ff_layernorm"),
        **layout.only("attention", parts.projections()),
        **state_space.mamba2_layers(spec, parts.LAYER + "mamba."),
        **layout.glu(F + "gate_proj", F + "up_proj", F + "down_proj"),
    }


FAMILY = Family(
    model_type="bamba",
    architectures=("BambaForCausalLM",),
    paper="IBM, Princeton, CMU and UIUC 2024, Bamba: Inference-Efficient Hybrid Mamba2 Model",
    block=Block(mixer=Mamba2(), ffn=Glu()),
    parts=(
        AttentionLayers(),
        Keys(
            {
                "vocab_size": Key("model.vocab_size", default=128000),
                "hidden_size": Key("model.width", default=4096),
                "intermediate_size": Key("ffn.hidden", default=14336),
                "num_attention_heads": Key("attention.heads", default=32),
                "num_key_value_heads": Key("attention.kv_heads", default=8, null=0),
                "attention_bias": Key(("attention.qkv_bias", "attention.out_bias"), bool, False),
                "mlp_bias": Key("ffn.bias", bool, False),
                "rms_norm_eps": Key(("norm.eps", "mamba2.norm_eps"), float, 1e-5),
                "mamba_d_state": Key("mamba2.state", default=256),
                "mamba_n_groups": Key("mamba2.groups", default=1),
                "mamba_d_conv": Key("mamba2.conv", default=4),
                "mamba_conv_bias": Key("mamba2.conv_bias", bool, True),
                "mamba_proj_bias": Key("mamba2.bias", bool, False),
                "tie_word_embeddings": parts.tied(False),
                **state_space.INITIAL,
                "time_step_limit": state_space.step_limit("mamba2.step_limit"),
            }
        ),
        state_space.Width("mamba_n_heads", "mamba_d_head", "mamba_expand"),
        state_space.SILU,
        Rope(fraction=0.5),
    ),
    tensors=tensors,
)
