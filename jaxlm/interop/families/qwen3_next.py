"""Qwen3-Next (Qwen team 2025): gated delta rule, with gated attention in every fourth layer, and experts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import experts, layout, parts, state_space
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.layout import Piece, Place, Rows, piecewise, plain, transposed
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.gated_delta_net import GatedDeltaNet
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.rms import RmsNorm

A, D, S = (parts.LAYER + part for part in ("self_attn.", "linear_attn.", "mlp.shared_expert."))
KINDS = {
    "linear_attention": GatedDeltaNet(),
    "full_attention": Attention(qk_norm=RmsNorm(offset=1.0), out_gate=True),
}


class LayerTypes:
    """Which layers attend: a list, or every so many."""

    def read(self, c: Config, draft: Draft) -> None:
        depth, every = len(draft.blocks), parts.positive(c, "full_attention_interval", 4)
        names = [tuple(KINDS)[(i + 1) % every == 0] for i in range(depth)]
        kinds = c.sequence("layer_types", default=names)
        if len(kinds) != depth:
            raise ConfigError(f"config.json: layer_types has {len(kinds)} entries for {depth} layers")
        if odd := [kind for kind in kinds if kind not in KINDS]:
            raise ConfigError(f"config.json: layer_types has {shown(odd[0])}; allowed: {', '.join(KINDS)}")
        draft.blocks = [
            dataclasses.replace(block, mixer=KINDS[kind]) for block, kind in zip(draft.blocks, kinds, strict=True)
        ]

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {"layer_types": [tuple(KINDS)[isinstance(block.mixer, Attention)] for block in blocks]}


def attention(mixer: Attention) -> dict[str, layout.Layout]:
    """Each head's query and gate are neighbours in one tensor."""
    table, width = layout.attention(A + "q_proj", A + "k_proj", A + "v_proj", A + "o_proj"), mixer.head_dim

    def half(place: Place, start: int) -> Place:
        return dataclasses.replace(place, rows=Rows(mixer.heads, 2 * width, start, start + width))

    for name, axes in (("", "D G R K"), ("_bias", "G R K")):
        query, *others = table[f"mixer/qkv{name}"]
        piece = Piece(axes, "(G R K) D" if not name else "(G R K)")
        table[f"mixer/qkv{name}"] = (half(query, 0), *others)
        table[f"mixer/gate{name}"] = (half(Place(query.name, (piece,)), width),)
    return table


def delta(mixer: GatedDeltaNet) -> dict[str, layout.Layout]:
    """Of each key head, its query and key, then its value heads' values and gates, are neighbours in one tensor."""
    groups, keys, values = mixer.groups, mixer.key_width, mixer.value_width
    each = mixer.heads // groups
    value, step = Piece("D H V", "(H V) D"), Piece("D H", "H D")
    convolved = tuple(Piece("N G K", "(G K) () N", np.s_[::-1, :, i]) for i in (0, 1))
    return {
        **layout.shared(
            D + "in_proj_qkvz.weight",
            [
                ("mixer/qk", 2 * keys, Piece("D G S K", "(G S K) D")),
                ("mixer/v", each * values, value),
                ("mixer/z", each * values, value),
            ],
            groups,
        ),
        **layout.shared(D + "in_proj_ba.weight", [("mixer/beta", each, step), ("mixer/a", each, step)], groups),
        **layout.shared(
            D + "conv1d.weight",
            [
                ("mixer/qk_conv", 2 * groups * keys, convolved),
                ("mixer/v_conv", mixer.heads * values, Piece("N H V", "(H V) () N", state_space.REVERSED)),
            ],
        ),
        "mixer/A_log": plain(D + "A_log"),
        "mixer/dt_bias": plain(D + "dt_bias"),
        "mixer/norm/scale": plain(D + "norm.weight"),
        "mixer/out": piecewise(D + "out_proj.weight", Piece("H V D", "D (H V)")),
    }


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    found = {name: state_space.first_of(spec, name) for name in ("attention", "gated_delta_net")}
    makers = {"attention": attention, "gated_delta_net": delta}
    tables = [layout.only(name, makers[name](mixer)) for name, mixer in found.items() if mixer is not None]
    return {
        **parts.ends(),
        **parts.pre_norms(),
        **parts.gated(),
        **parts.qk_norms(),
        **{path: stored for table in tables for path, stored in table.items()},
        **experts.tensors(),
        **layout.glu(S + "gate_proj", S + "up_proj", S + "down_proj", "ffn/shared"),
        "ffn/shared_gate": transposed(parts.LAYER + "mlp.shared_expert_gate.weight"),
    }


FAMILY = Family(
    model_type="qwen3_next",
    architectures=("Qwen3NextForCausalLM",),
    paper="Qwen team 2025, Qwen3-Next: Towards Ultimate Training and Inference Efficiency",
    block=Block(
        mixer=GatedDeltaNet(),
        ffn=Moe(expert=Glu(), shared=Glu(), shared_gate=True, router=Router()),
        norm=RmsNorm(offset=1.0),
    ),
    parts=(
        LayerTypes(),
        Keys(
            {
                "vocab_size": Key("model.vocab_size", default=151936),
                "hidden_size": Key("model.width", default=2048),
                "num_attention_heads": Key("attention.heads", default=16),
                "num_key_value_heads": Key("attention.kv_heads", default=2),
                "head_dim": Key("attention.head_dim", default=256),
                "attention_bias": Key(("attention.qkv_bias", "attention.out_bias"), bool, False),
                "linear_num_value_heads": Key("gated_delta_net.heads", default=32),
                "linear_num_key_heads": Key("gated_delta_net.key_heads", default=16),
                "linear_key_head_dim": Key("gated_delta_net.key_width", default=128),
                "linear_value_head_dim": Key("gated_delta_net.value_width", default=128),
                "linear_conv_kernel_dim": Key("gated_delta_net.conv", default=4),
                "rms_norm_eps": Key(("norm.eps", "attention.qk_norm.eps", "gated_delta_net.eps"), float, 1e-6),
                "intermediate_size": Key((), default=5632),  # of plain layers
                "moe_intermediate_size": Key("ffn.expert.hidden", default=512),
                "shared_expert_intermediate_size": Key("ffn.shared.hidden", default=512),
                "num_experts": Key("ffn.experts", default=512, also=("num_local_experts",)),
                "num_experts_per_tok": Key("ffn.router.top_k", default=10),
                "norm_topk_prob": Key("ffn.router.normalize", bool, True),
                "tie_word_embeddings": parts.tied(False),
            }
        ),
        state_space.SILU,  # of experts too
        experts.DenseLayers(),
        Rope(fraction=0.25),
    ),
    buffers=(r"rotary_emb\.inv_freq$", r"^mtp\."),  # the head that predicts two tokens on
    tensors=tensors,
)
