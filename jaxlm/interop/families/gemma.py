"""Gemma (Gemma team 2024): Llama with gated GELU, embeddings times sqrt(width), and gains stored less one."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.rms import RmsNorm

FAMILY = Family(
    model_type="gemma",
    architectures=("GemmaForCausalLM",),
    paper="Gemma team 2024, Gemma: Open Models Based on Gemini Research and Technology",
    block=Block(mixer=Attention(), ffn=Glu(activation="gelu_tanh"), norm=RmsNorm(offset=1.0)),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=256, tie=True),
                # The first files say "gelu" and mean the tanh form.
                "hidden_act": Key(
                    "ffn.activation", str, "gelu", lambda name: "gelu_tanh", lambda name: "gelu_pytorch_tanh"
                ),
                "attention_bias": parts.biases(),
            }
        ),
        parts.ScaledEmbedding(),
        Rope(),
    ),
    tensors=parts.tensors(),
)
