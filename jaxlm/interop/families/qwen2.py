"""Qwen 2 and 2.5 (Qwen team 2024): Llama with biases on q, k and v; upper layers may see a window only."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    paper="Qwen team 2024, Qwen2 Technical Report",
    block=Block(mixer=Attention(qkv_bias=True), ffn=Glu()),
    parts=(
        parts.keys(),
        parts.Windows(
            lambda c, i: i >= c.integer("max_window_layers", default=28), switch="use_sliding_window", size=4096
        ),
        Rope(),
    ),
    tensors=parts.tensors(),
)
