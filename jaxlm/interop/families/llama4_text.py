"""Llama 4 (Meta 2025), text: chunked layers with rotary, full ones without; experts weighed at the input."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.layout import Piece, piecewise, plain, transposed
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.rms import RmsNorm
from jaxlm.position.none import NoPosition
from jaxlm.position.rotary import Rotary
from jaxlm.position.temperature import Temperature

F = parts.LAYER + "feed_forward."


class DenseLayers:
    """Layers without experts: all but every so many, or but those listed."""

    def read(self, c: Config, draft: Draft) -> None:
        step, depth = parts.positive(c, "interleave_moe_layer_step", 1), len(draft.blocks)
        sparse = c.sequence("moe_layers", default=list(range(step - 1, depth, step)))
        hidden = c.integer("intermediate_size_mlp", default=16384)
        for i, block in enumerate(draft.blocks):
            if i not in sparse:
                draft.set("ffn", Glu(hidden=hidden, activation=block.ffn.expert.activation), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        hidden = next((block.ffn.hidden for block in blocks if isinstance(block.ffn, Glu)), 16384)
        sparse = [i for i, block in enumerate(blocks) if isinstance(block.ffn, Moe)]
        return {"intermediate_size_mlp": hidden, "moe_layers": sparse}


class HeadNorms:
    """Queries and keys of layers with positions are normalised without a gain; a rotation does not change that."""

    def read(self, c: Config, draft: Draft) -> None:
        if c.flag("use_qk_norm", default=True):
            for i, block in enumerate(draft.blocks):
                if isinstance(block.mixer.position, Rotary):
                    draft.set("mixer.qk_norm", RmsNorm(eps=block.norm.eps, gain=False), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {"use_qk_norm": any(block.mixer.qk_norm is not None for block in blocks)}


class Temperatures:
    """Sharper queries further on, in the layers without positions."""

    def read(self, c: Config, draft: Draft) -> None:
        step, rate = c.integer("floor_scale", default=8192), c.number("attn_scale", default=0.1)
        if c.flag("attn_temperature_tuning", default=True):
            for i, block in enumerate(draft.blocks):
                if isinstance(block.mixer.position, NoPosition):
                    draft.set("mixer.position", Temperature(rate=rate, step=step), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        found = [p for block in blocks if isinstance(p := block.mixer.position, Temperature)]
        own = {"floor_scale": found[0].step, "attn_scale": found[0].rate} if found else {}
        return {"attn_temperature_tuning": bool(found), **own}


FAMILY = Family(
    model_type="llama4_text",
    architectures=("Llama4ForCausalLM",),
    paper="Meta 2025, The Llama 4 herd",
    block=Block(
        mixer=Attention(position=Rotary(pairing="interleaved")),
        ffn=Moe(expert=Glu(), shared=Glu(), weigh_input=True, router=Router(score="sigmoid", normalize=False)),
    ),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=128, default_eps=1e-5),
                "intermediate_size": Key(("ffn.expert.hidden", "ffn.shared.hidden"), default=8192),
                "hidden_act": parts.activation("silu", paths=("ffn.expert.activation", "ffn.shared.activation")),
                "num_local_experts": Key("ffn.experts", default=16, also=("num_experts",)),
                "num_experts_per_tok": Key("ffn.router.top_k", default=1),
                "attention_bias": parts.biases(),
            }
        ),
        DenseLayers(),
        parts.NoPositions(lambda c, i, block: parts.without_positions(c, i), key="no_rope_layers"),
        parts.Windows(),
        HeadNorms(),
        Temperatures(),
        Rope(pairing="interleaved", theta=500_000.0),
    ),
    tensors={
        **parts.tensors(),
        **layout.glu(F + "gate_proj", F + "up_proj", F + "down_proj"),
        "ffn/router/kernel": transposed(F + "router.weight"),
        "ffn/experts/in": piecewise(
            F + "experts.gate_up_proj",
            Piece("E D F", "E D F", np.s_[..., 0]),
            Piece("E D F", "E D F", np.s_[..., 1]),
            axis=2,
        ),
        "ffn/experts/out": plain(F + "experts.down_proj"),
        **layout.glu(
            F + "shared_expert.gate_proj", F + "shared_expert.up_proj", F + "shared_expert.down_proj", "ffn/shared"
        ),
    },
)
