"""Zamba2 (Glorioso et al. 2024): Mamba-2 layers, before some of which a transformer block is heard that they share.

Several such blocks take turns. Each is stored with the first layer that hears it, adapters of the others among it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts, state_space
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only, every_block
from jaxlm.interop.layout import Piece, Place, piecewise, transposed
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.mixer.zamba import Zamba
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.position.rotary import Rotary

KINDS = ("linear_attention", "hybrid")
OLD = {"mamba": "linear_attention"}


class Layers:
    """Which layers hear a shared block, and what that is."""

    def read(self, c: Config, draft: Draft) -> None:
        named = [OLD.get(str(kind), str(kind)) for kind in c.sequence("layers_block_type", "layer_types")]
        if odd := next((kind for kind in named if kind not in KINDS), None):
            raise ConfigError(f"config.json: layers_block_type has {shown(odd)}; allowed: {', '.join(KINDS)}")
        if "hybrid" not in named:
            raise ConfigError("config.json: layers_block_type has no 'hybrid' layer")
        if (depth := c.integer("num_hidden_layers", default=len(named))) != len(named):
            raise ConfigError(f"config.json: num_hidden_layers = {depth}, but layers_block_type has {len(named)}")
        width, heads = parts.width_of(c), parts.heads_of(c)
        if heads < 1 or 2 * width % heads:
            raise ConfigError(f"config.json: twice hidden_size {width} is not divisible by {heads} attention heads")
        rank, head_dim = parts.positive(c, "adapter_rank", 128), 2 * width // heads
        adapted = c.flag("use_shared_attention_adapter", default=False)
        attention = Attention(
            head_dim=head_dim,
            scale=(head_dim / 2) ** -0.5,
            position=Rotary() if c.flag("use_mem_rope", default=False) else "none",
            adapter=rank if adapted else 0,
        )
        if adapted and c.look_up(("num_key_value_heads",), int, heads, heads) != heads:
            raise ConfigError("config.json: use_shared_attention_adapter needs as many num_key_value_heads as heads")
        mixer = Zamba(attention=attention, mixer=Mamba2(), ffn=Glu(adapter=rank))
        hybrid = dataclasses.replace(draft.blocks[0], mixer=mixer, placement="none")
        turns, heard = parts.positive(c, "num_mem_blocks", 1), 0
        for i, kind in enumerate(named):
            if kind == "hybrid":
                draft.blocks[i] = dataclasses.replace(
                    hybrid, mixer=dataclasses.replace(mixer, share=str(heard % turns))
                )
                heard += 1

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        mixers = [block.mixer for block in blocks if isinstance(block.mixer, Zamba)]
        attention, ffn = mixers[0].attention, mixers[0].ffn
        return {
            "num_hidden_layers": len(blocks),
            "layers_block_type": [KINDS[isinstance(block.mixer, Zamba)] for block in blocks],
            "num_mem_blocks": len({mixer.share for mixer in mixers}),
            "adapter_rank": ffn.adapter,
            "use_shared_attention_adapter": attention.adapter > 0,
            "use_mem_rope": isinstance(attention.position, Rotary),
        }


def marks(blocks: list[Block]) -> list[dict[str, int]]:
    """Of each layer that hears a shared block: the first that hears the same, and how many of any came before."""
    first: dict[str, int] = {}
    out, use = [], 0
    for i, block in enumerate(blocks):
        out.append({})
        if isinstance(block.mixer, Zamba):
            out[-1] = {"first": first.setdefault(block.mixer.share, i), "use": use}
            use += 1
    return out


def shared_block(at: str) -> dict[str, layout.Layout]:
    """A transformer block under the prefix ``at``, and the adapters of one layer."""
    a, f = at + "self_attn.", at + "feed_forward."
    down, up = (f"{f}gate_up_proj_adapter_list.{{use}}.{i}.weight" for i in (0, 1))
    attention = layout.attention(*(f"{a}{name}_proj" for name in "qkvo"))
    adapters = {name: f"{a}linear_{name}_adapter_list.{{use}}." for name in "qkv"}
    ends = tuple(
        Place(f"{name}0.weight", (Piece("D S", "S D", np.s_[:, i]),)) for i, name in enumerate(adapters.values())
    )

    def both(name: str, axes: str, stored: str) -> layout.Layout:
        return piecewise(name, *(Piece(axes, stored, np.s_[..., i]) for i in (0, 1)))

    return {
        **layout.norm("attention_norm", at + "input_layernorm"),
        **{path.replace("mixer/", "attention/"): stored for path, stored in attention.items()},
        "attention/adapter_in": ends,
        **{
            f"attention/adapter_{name}": piecewise(f"{own}1.weight", Piece("S G R K", "(G R K) S"))
            for name, own in adapters.items()
        },
        **layout.norm("ffn_norm", at + "pre_ff_layernorm"),
        "ffn/in": both(f + "gate_up_proj.weight", "D F", "F D"),
        "ffn/in_bias": both(f + "gate_up_proj.bias", "F", "F"),
        "ffn/in_down": transposed(down),
        "ffn/in_up": both(up, "S F", "F S"),
        "ffn/out": transposed(f + "down_proj.weight"),
        "ffn/out_bias": layout.plain(f + "down_proj.bias"),
    }


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    blocks = every_block(spec)
    own, mixer = parts.LAYER + "mamba_decoder.", next(b.mixer for b in blocks if isinstance(b.mixer, Zamba))
    layer = {
        "tell": transposed(parts.LAYER + "linear.weight"),
        **layout.norm("norm", own + "input_layernorm"),
        **state_space.mamba2(mixer.mixer, spec.width, own + "mamba."),
        **shared_block("model.layers.{first}.shared_transformer."),
    }
    once = {
        f"shared/{block.mixer.share}/mixer/{path}": stored
        for block, numbers in zip(blocks, marks(blocks), strict=True)
        if numbers
        for path, stored in shared_block(f"model.layers.{numbers['first']}.shared_transformer.").items()
    }
    return {
        **parts.ends("model.final_layernorm"),
        **layout.norm("mixer_norm", parts.LAYER + "input_layernorm"),
        **state_space.mamba2_layers(spec, parts.LAYER + "mamba."),
        **layout.only("zamba", {f"mixer/{path}": stored for path, stored in layer.items()}),
        **once,
    }


FAMILY = Family(
    model_type="zamba2",
    architectures=("Zamba2ForCausalLM",),
    paper="Glorioso et al. 2024, The Zamba2 Suite: Technical Report",
    block=Block(mixer=Mamba2(), ffn=None),
    model={"tied_head": True},
    parts=(
        Layers(),
        Keys(
            {
                "vocab_size": Key("model.vocab_size", default=32000),
                "hidden_size": Key("model.width", default=2560),
                "intermediate_size": Key("zamba.ffn.hidden", default=lambda c: 4 * parts.width_of(c)),
                "hidden_act": parts.activation("gelu", paths="zamba.ffn.activation"),
                "num_attention_heads": Key("zamba.attention.heads", default=32),
                "num_key_value_heads": Key("zamba.attention.kv_heads", default=parts.heads_of),
                "add_bias_linear": Key(("mamba2.bias", "zamba.ffn.bias"), bool, False),
                "mamba_d_state": Key("mamba2.state", default=64),
                "mamba_ngroups": Key("mamba2.groups", default=1),
                "mamba_d_conv": Key("mamba2.conv", default=4),
                "rms_norm_eps": Key(("norm.eps", "zamba.norm.eps"), float, 1e-5),
                **state_space.INITIAL,
                "time_step_min": Key(
                    "mamba2.step_limit", float, 0.001, lambda least: (least, math.inf), lambda limit: limit[0]
                ),
                # What follows from others, or changes nothing.
                **state_space.unused(
                    use_conv_bias=True, use_mem_eff_path=False, use_long_context=False, attention_head_dim=0,
                    attention_hidden_size=0, hybrid_layer_ids=[], kv_channels=0, num_query_groups=0,
                ),
            }
        ),
        Only("tie_word_embeddings", (True,), "without, transformers does not tie the shared blocks either"),
        state_space.Width("n_mamba_heads", "mamba_headdim", "mamba_expand"),
        Rope(at="mixer.attention"),
    ),
    depth=("layers_block_type", "num_hidden_layers"),
    listed=True,
    marks=marks,
    tensors=tensors,
)  # fmt: skip
