"""Nemotron-H (NVIDIA 2025): layers of one part each, Mamba-2, attention, a perceptron or experts.

A perceptron behind a mixer is the same as a block of both, since both add to the stream what they make of its norm; one
that has no mixer before it is refused. transformers bounds Mamba-2's steps from below by ``time_step_min`` in passes of
several tokens, and not in single steps; here they are bounded in all. The head is never tied, whatever is said.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.mlp import Mlp
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import layout, parts, state_space
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only
from jaxlm.interop.layout import plain, transposed
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.model.spec import Block, ModelSpec

AT, NEXT = "backbone.layers.{layer}.", "backbone.layers.{next}."
LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
OLD = {"mamba": "linear_attention", "attention": "full_attention"}
RELU = Mlp(activation="squared_relu")
PARTS = {
    "linear_attention": Mamba2(),
    "full_attention": Attention(position="none"),
    "mlp": RELU,
    "moe": Moe(
        expert=RELU,
        shared=RELU,
        router=Router(score="sigmoid", correction=True, normalize=True, groups=1, top_groups=1),
    ),
}
MIXERS = ("linear_attention", "full_attention")


class Layers:
    """What each layer is: names, or letters in a row."""

    def read(self, c: Config, draft: Draft) -> None:
        letters = c.text("hybrid_override_pattern", default="ME*-")
        named = c.sequence("layers_block_type", "layer_types", default=[LETTERS.get(one, one) for one in letters])
        c.integer("num_hidden_layers", default=0)  # the list counts
        kinds, blocks = [OLD.get(str(kind), str(kind)) for kind in named], []
        for i, kind in enumerate(kinds):
            where = f"config.json: layers_block_type[{i}] = {shown(kind)}"
            if kind not in PARTS:
                raise ConfigError(f"{where} is not supported; allowed: {', '.join(PARTS)}")
            if kind in MIXERS:
                blocks.append(dataclasses.replace(draft.blocks[0], mixer=PARTS[kind], ffn=None))
            elif not blocks or blocks[-1].ffn is not None:
                raise ConfigError(f"{where} is not supported: no {' or '.join(MIXERS)} comes right before it")
            else:
                blocks[-1] = dataclasses.replace(blocks[-1], ffn=PARTS[kind])
        draft.blocks = blocks

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        kinds = []
        for block in blocks:
            kinds.append("full_attention" if isinstance(block.mixer, Attention) else "linear_attention")
            if block.ffn is not None:
                kinds.append("moe" if isinstance(block.ffn, Moe) else "mlp")
        return {"layers_block_type": kinds}


def first_layers(blocks: list[Block]) -> list[int]:
    """The number of the stored layer that each block begins with."""
    return list(itertools.accumulate((1 + (block.ffn is not None) for block in blocks[:-1]), initial=0))


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    m, f = AT + "mixer.", NEXT + "mixer."
    return {
        **layout.ends("backbone.embeddings", "backbone.norm_f", "lm_head"),
        **layout.norm("mixer_norm", AT + "norm"),
        **layout.norm("ffn_norm", NEXT + "norm"),
        **layout.only("attention", layout.attention(m + "q_proj", m + "k_proj", m + "v_proj", m + "o_proj")),
        **state_space.mamba2_layers(spec, m),
        **layout.mlp(f + "up_proj", f + "down_proj"),
        "ffn/router/kernel": transposed(f + "gate.weight"),
        "ffn/router/correction": plain(f + "gate.e_score_correction_bias"),
        "ffn/experts/in": transposed(f + "experts.{expert}.up_proj.weight"),
        "ffn/experts/out": transposed(f + "experts.{expert}.down_proj.weight"),
        "ffn/shared/in": transposed(f + "shared_experts.up_proj.weight"),
        "ffn/shared/in_bias": plain(f + "shared_experts.up_proj.bias"),
        "ffn/shared/out": transposed(f + "shared_experts.down_proj.weight"),
        "ffn/shared/out_bias": plain(f + "shared_experts.down_proj.bias"),
    }


FAMILY = Family(
    model_type="nemotron_h",
    architectures=("NemotronHForCausalLM",),
    paper="NVIDIA 2025, Nemotron-H: A Family of Accurate and Efficient Hybrid Mamba-Transformer Models",
    block=Block(mixer=Mamba2(), ffn=None),
    parts=(
        Layers(),
        Keys(
            {
                "vocab_size": Key("model.vocab_size", default=131072),
                "hidden_size": Key("model.width", default=4096),
                "num_attention_heads": Key("attention.heads", default=32),
                "num_key_value_heads": Key("attention.kv_heads", default=8, null=0),
                "head_dim": Key("attention.head_dim", default=128, also=("attention_head_dim",)),
                "intermediate_size": Key("mlp.hidden", default=21504),
                "mlp_hidden_act": parts.activation(
                    "relu2", paths=("mlp.activation", "moe.expert.activation", "moe.shared.activation")
                ),
                "mlp_bias": Key(("mlp.bias", "moe.shared.bias"), bool, False),
                "n_routed_experts": Key("moe.experts", default=8),
                "moe_intermediate_size": Key("moe.expert.hidden", default=7688),
                "moe_shared_expert_intermediate_size": Key("moe.shared.hidden", default=7688),
                "num_experts_per_tok": Key("moe.router.top_k", default=2),
                "routed_scaling_factor": Key("moe.router.scale", float, 1.0),
                "norm_topk_prob": Key("moe.router.normalize", bool, True),
                "n_group": Key("moe.router.groups", default=1),
                "topk_group": Key("moe.router.top_groups", default=1),
                "ssm_state_size": Key("mamba2.state", default=128),
                "n_groups": Key("mamba2.groups", default=8, also=("mamba_n_groups",)),
                "conv_kernel": Key("mamba2.conv", default=4, also=("mamba_d_conv",)),
                "use_bias": Key("mamba2.bias", bool, False),
                "use_conv_bias": Key("mamba2.conv_bias", bool, True, also=("mamba_conv_bias",)),
                "layer_norm_epsilon": Key(
                    ("norm.eps", "mamba2.norm_eps"), float, 1e-5, also=("rms_norm_eps", "norm_eps")
                ),
                **state_space.INITIAL,
                "time_step_min": Key(
                    "mamba2.step_limit",
                    float,
                    0.001,
                    lambda least: (least, math.inf) if least else None,
                    lambda limit: limit[0] if limit else 0.0,
                ),
                # What this layer has no use for.
                **state_space.unused(
                    attention_bias=False, sliding_window=0, expand=2, time_step_limit=[], max_position_embeddings=4096,
                    mamba_proj_bias=False, mamba_ssm_cache_dtype="float32", moe_shared_expert_overlap=True,
                    n_shared_experts=1, tie_word_embeddings=False, num_nextn_predict_layers=0, mtp_layers_block_type=[],
                ),
            }
        ),
        Only("moe_latent_size", (None,), "experts see the whole stream"),
        Only("mamba_hidden_act", ("silu",), "it belongs to the layer"),
        state_space.Width("mamba_num_heads", "mamba_head_dim"),
    ),
    depth=("layers_block_type", "hybrid_override_pattern", "num_hidden_layers"),
    listed=True,
    prefix="backbone.",
    renamed={r"^model\.": "backbone."},
    buffers=(r"^mtp\.",),
    layer=first_layers,
    tensors=tensors,
)  # fmt: skip
