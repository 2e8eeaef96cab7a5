"""Falcon-H1 (Zuo et al. 2025): Mamba-2 and attention side by side in every layer, and a factor on nearly everything."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts, state_space
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.mixer.parallel import Parallel
from jaxlm.model.spec import Block, ModelSpec

F = parts.LAYER + "feed_forward."


def numbers(c: Config, key: str, count: int) -> list[float]:
    """A list of so many numbers, ones by default."""
    found = c.sequence(key, default=[1.0] * count)
    if len(found) != count or not all(isinstance(one, int | float) for one in found):
        raise ConfigError(f"config.json: {key} should be {count} numbers, got {shown(found)}")
    return [float(one) for one in found]


class Multipliers:
    """Factors of what each part reads and gives; that of keys is one of the logits."""

    PAIRS: ClassVar[dict[str, tuple[str, str]]] = {
        "in_scales": ("ssm_in_multiplier", "attention_in_multiplier"),
        "out_scales": ("ssm_out_multiplier", "attention_out_multiplier"),
    }

    def read(self, c: Config, draft: Draft) -> None:
        for field, keys in self.PAIRS.items():
            draft.set(f"mixer.{field}", tuple(c.number(key, default=1.0) for key in keys))
        scales = tuple(numbers(c, "ssm_multipliers", 5))
        draft.set("mixer.first.scales", () if set(scales) == {1.0} else scales)
        scale = c.number("key_multiplier", default=1.0) * draft.blocks[0].mixer.second.head_dim ** -0.5
        draft.set("mixer.second.scale", scale)
        for field, factor in zip(("gate_scale", "out_scale"), numbers(c, "mlp_multipliers", 2), strict=True):
            draft.set(f"ffn.{field}", factor)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        mixer, ffn = blocks[0].mixer, blocks[0].ffn
        pairs = {field: zip(keys, getattr(mixer, field), strict=True) for field, keys in self.PAIRS.items()}
        return {
            **dict(pairs["in_scales"]),
            **dict(pairs["out_scales"]),
            "ssm_multipliers": list(mixer.first.scales or (1.0,) * 5),
            "key_multiplier": mixer.second.scale * mixer.second.head_dim**0.5,
            "mlp_multipliers": [ffn.gate_scale, ffn.out_scale],
        }


class Norm:
    """Whether Mamba-2 norms what it gives, before or after the gate; and offsets, of both its projections or none."""

    def read(self, c: Config, draft: Draft) -> None:
        first = c.flag("mamba_norm_before_gate", default=True)
        draft.set(
            "mixer.first.norm",
            "none" if not c.flag("mamba_rms_norm", default=False) else "before_gate" if first else "gated",
        )
        bias = c.flag("mamba_proj_bias", default=False)
        c.only("projectors_bias", (bias,), "mamba_proj_bias says the same of the way in")
        draft.set("mixer.first.bias", bias)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        mamba = blocks[0].mixer.first
        norms = {"mamba_rms_norm": mamba.norm != "none", "mamba_norm_before_gate": mamba.norm != "gated"}
        return {**norms, "mamba_proj_bias": mamba.bias, "projectors_bias": mamba.bias}


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    attention = {path.replace("mixer/", "mixer/second/"): stored for path, stored in parts.projections().items()}
    mamba = spec.layers[0].pattern[0].mixer.first
    return {
        **parts.ends("model.final_layernorm"),
        **layout.norm("mixer_norm", parts.LAYER + "input_layernorm"),
        **layout.norm("ffn_norm", parts.LAYER + "pre_ff_layernorm"),
        **attention,
        **state_space.mamba2(mamba, spec.width, parts.LAYER + "mamba.", "mixer/first"),
        **layout.glu(F + "gate_proj", F + "up_proj", F + "down_proj"),
    }


FAMILY = Family(
    model_type="falcon_h1",
    architectures=("FalconH1ForCausalLM",),
    paper="Zuo et al. 2025, Falcon-H1: A Family of Hybrid-Head Language Models",
    block=Block(mixer=Parallel(first=Mamba2(), second=Attention()), ffn=Glu()),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size", default=128000),
                "hidden_size": Key("model.width", default=4096),
                "intermediate_size": Key("ffn.hidden", default=14336),
                "hidden_act": parts.activation("silu"),
                "mlp_bias": Key("ffn.bias", bool, False),
                "num_attention_heads": Key("mixer.second.heads", default=32),
                "num_key_value_heads": Key("mixer.second.kv_heads", default=8, null=0),
                "head_dim": Key("mixer.second.head_dim", default=parts.head_dim_of),
                "attention_bias": Key(("mixer.second.qkv_bias", "mixer.second.out_bias"), bool, False),
                "mamba_d_state": Key("mixer.first.state", default=256),
                "mamba_n_groups": Key("mixer.first.groups", default=1),
                "mamba_d_conv": Key("mixer.first.conv", default=4),
                "mamba_conv_bias": Key("mixer.first.conv_bias", bool, True),
                "rms_norm_eps": Key(("norm.eps", "mixer.first.norm_eps"), float, 1e-5),
                "embedding_multiplier": parts.multiplier("model.embed_multiplier"),
                "lm_head_multiplier": parts.multiplier("model.logit_multiplier"),
                "tie_word_embeddings": parts.tied(False),
                **state_space.INITIAL,
                "time_step_limit": state_space.step_limit("mixer.first.step_limit"),
            }
        ),
        state_space.Width("mamba_n_heads", "mamba_d_head", "mamba_expand", "mamba_d_ssm", "mixer.first"),
        Multipliers(),
        Norm(),
        state_space.SILU,  # of Mamba-2 too
        Rope(at="mixer.second"),
    ),
    tensors=tensors,
)
