"""Jamba (Lieber et al. 2024): Mamba, with attention every so many layers and experts in every other."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import experts, layout, parts, state_space
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.layout import transposed
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.mamba import Mamba
from jaxlm.model.spec import Block, ModelSpec

F = parts.LAYER + "feed_forward."
MOE = Moe(expert=Glu(), router=Router(normalize=False))


class Layers:
    """Which layers attend, and which have experts."""

    def read(self, c: Config, draft: Draft) -> None:
        depth, count = len(draft.blocks), c.integer("num_experts", "num_local_experts", default=16)
        attend = state_space.every(c, "attn_layer_period", "attn_layer_offset", (8, 4), depth)
        sparse = state_space.every(c, "expert_layer_period", "expert_layer_offset", (2, 1), depth)
        moe = dataclasses.replace(MOE, experts=count, router=Router(1, normalize=False)) if count > 1 else Glu()
        draft.blocks = [
            dataclasses.replace(
                block,
                mixer=Attention(position="none", head_dim=parts.head_dim_of(c)) if attends else block.mixer,
                ffn=moe if has_experts else Glu(),
            )
            for block, attends, has_experts in zip(draft.blocks, attend, sparse, strict=True)
        ]

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        attention = state_space.periodic([isinstance(block.mixer, Attention) for block in blocks])
        sparse = state_space.periodic([isinstance(block.ffn, Moe) for block in blocks])
        counts = [block.ffn.experts for block in blocks if isinstance(block.ffn, Moe)]
        return {
            **dict(zip(("attn_layer_period", "attn_layer_offset"), attention, strict=True)),
            **dict(zip(("expert_layer_period", "expert_layer_offset"), sparse, strict=True)),
            "num_experts": counts[0] if counts else 1,
        }


FAMILY = Family(
    model_type="jamba",
    architectures=("JambaForCausalLM",),
    paper="Lieber et al. 2024, Jamba: A Hybrid Transformer-Mamba Language Model",
    block=Block(mixer=Mamba(inner_norm="rms"), ffn=Glu()),
    parts=(
        Layers(),
        Keys(
            {
                "vocab_size": Key("model.vocab_size", default=65536),
                "hidden_size": Key("model.width", default=4096),
                "intermediate_size": Key(("glu.hidden", "moe.expert.hidden"), default=14336),
                "num_attention_heads": Key("attention.heads", default=32),
                "num_key_value_heads": Key("attention.kv_heads", default=8, null=0),
                "num_experts_per_tok": Key("moe.router.top_k", default=2),
                "rms_norm_eps": Key(("norm.eps", "mamba.norm_eps"), float, 1e-6),
                "mamba_d_state": Key("mamba.state", default=16),
                "mamba_d_conv": Key("mamba.conv", default=4),
                "mamba_expand": Key("mamba.expand", (int, float), 2, float, parts.whole),
                "mamba_dt_rank": state_space.rank("mamba.dt_rank"),
                "mamba_conv_bias": Key("mamba.conv_bias", bool, True),
                "mamba_proj_bias": Key("mamba.bias", bool, False),
                "tie_word_embeddings": parts.tied(False),
                "max_position_embeddings": Key((), default=262144),  # there are no positions
                **state_space.INITIAL,
            }
        ),
        state_space.SILU,  # of experts too
    ),
    tensors={
        **parts.ends("model.final_layernorm"),
        **layout.norm("mixer_norm", parts.LAYER + "input_layernorm"),
        **layout.norm("ffn_norm", parts.LAYER + "pre_ff_layernorm"),
        **layout.only("attention", parts.projections()),
        **layout.only(
            "mamba", state_space.mamba(parts.LAYER + "mamba.", ("dt_layernorm", "b_layernorm", "c_layernorm"))
        ),
        **layout.glu(F + "gate_proj", F + "up_proj", F + "down_proj"),
        **experts.tensors(F),
        "ffn/router/kernel": transposed(F + "router.weight"),
    },
)
