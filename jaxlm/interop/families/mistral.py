"""Mistral 7B (Jiang et al. 2023): Llama with a window of the nearest keys in every layer."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    paper="Jiang et al. 2023, Mistral 7B",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(parts.keys(), parts.Windows(listed=False), Rope()),
    tensors=parts.tensors(),
)
