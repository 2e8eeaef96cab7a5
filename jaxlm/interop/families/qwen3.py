"""Qwen 3 (Qwen team 2025): Llama with a head width of its own and RMS norm on each head's queries and keys."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    paper="Qwen team 2025, Qwen3 Technical Report",
    block=Block(mixer=Attention(qk_norm="rms"), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=128, qk_norm=True),
                "attention_bias": parts.biases(),
            }
        ),
        parts.Windows(
            lambda c, i: i >= c.integer("max_window_layers", default=28), switch="use_sliding_window", size=4096
        ),
        Rope(),
    ),
    tensors={**parts.tensors(), **parts.qk_norms()},
)
