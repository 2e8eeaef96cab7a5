"""Command R7B and A (Cohere 2025): layers of windows with rotary, every fourth layer full and without positions."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts, rope
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

FAMILY = Family(
    model_type="cohere2",
    architectures=("Cohere2ForCausalLM",),
    paper="Cohere 2025, Command A: An Enterprise-Ready Large Language Model",
    block=Block(mixer=Attention(), ffn=Glu(), norm=LayerNorm(bias=False), residual="parallel_shared"),
    parts=(
        Keys(
            {
                **parts.keys(eps="layer_norm_eps", default_eps=1e-5, tie=True),
                "logit_scale": parts.multiplier("model.logit_multiplier", 0.0625),
                "attention_bias": parts.biases(),
            }
        ),
        parts.Windows(lambda c, i: bool((i + 1) % parts.positive(c, "sliding_window_pattern", 4)), size=4096),
        parts.NoPositions(lambda c, i, block: not rope.is_local(block.mixer)),
        Rope(pairing="interleaved"),
    ),
    tensors={
        **parts.ends(),
        **layout.norm("mixer_norm", parts.LAYER + "input_layernorm"),
        **parts.projections(),
        **parts.gated(),
    },
)
