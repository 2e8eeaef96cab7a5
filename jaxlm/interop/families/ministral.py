"""Ministral (Mistral AI 2024): Mistral with windows in the layers that ``layer_types`` names."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="ministral",
    architectures=("MinistralForCausalLM",),
    paper="Mistral AI 2024, Un Ministral, des Ministraux",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(parts.keys(), parts.Windows(size=4096), Rope()),
    tensors=parts.tensors(),
)
