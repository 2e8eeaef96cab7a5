"""Mamba-2 (Dao and Gu 2024): state spaces whose heads fade by one number each, and no feed-forward."""

from __future__ import annotations

from jaxlm.interop import layout, parts, state_space
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.model.spec import Block, ModelSpec


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    return {
        **state_space.backbone(),
        **state_space.mamba2(spec.layers[0].pattern[0].mixer, spec.width, state_space.BACKBONE + "mixer."),
    }


FAMILY = Family(
    model_type="mamba2",
    architectures=("Mamba2ForCausalLM",),
    paper="Dao and Gu 2024, Transformers are SSMs: State Space Duality",
    block=Block(mixer=Mamba2(), ffn=None),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size", default=32768),
                "hidden_size": Key("model.width", default=4096),
                "state_size": Key("mixer.state", default=128),
                "n_groups": Key("mixer.groups", default=8),
                "conv_kernel": Key("mixer.conv", default=4),
                "use_bias": Key("mixer.bias", bool, False),
                "use_conv_bias": Key("mixer.conv_bias", bool, True),
                "time_step_limit": state_space.step_limit("mixer.step_limit"),
                "layer_norm_epsilon": Key(("norm.eps", "mixer.norm_eps"), float, 1e-5),
                "tie_word_embeddings": parts.tied(False),
                "time_step_rank": Key((), (int, str), "auto"),  # which this layer has no use for
                **state_space.INITIAL,
            }
        ),
        state_space.Width("num_heads", "head_dim", "expand"),
        state_space.SILU,
    ),
    prefix="backbone.",
    renamed=state_space.OLD_NAMES,
    tensors=tensors,
)
