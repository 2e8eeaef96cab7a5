"""SmolLM 3 (Hugging Face 2025): Llama with every fourth layer without positions."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    paper="Hugging Face 2025, SmolLM3: smol, multilingual, long-context reasoner",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(tie=True),
                "attention_bias": parts.biases(),
                "mlp_bias": Key("ffn.bias", bool, False),
            }
        ),
        parts.Windows(lambda c, i: parts.without_positions(c, i), switch="use_sliding_window", counted=False),
        parts.NoPositions(lambda c, i, block: parts.without_positions(c, i), key="no_rope_layers"),
        Rope(theta=2_000_000.0),
    ),
    tensors=parts.tensors(),
)
