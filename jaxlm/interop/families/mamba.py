"""Mamba (Gu and Dao 2023): one selective state space a layer, and no feed-forward."""

from __future__ import annotations

from jaxlm.interop import state_space
from jaxlm.interop.family import Family
from jaxlm.mixer.mamba import Mamba
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="mamba",
    architectures=("MambaForCausalLM",),
    paper="Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    block=Block(mixer=Mamba(), ffn=None),
    parts=(state_space.mamba_keys(), state_space.SILU),
    prefix="backbone.",
    renamed=state_space.OLD_NAMES,
    tensors={**state_space.backbone(), **state_space.mamba(state_space.BACKBONE + "mixer.")},
)
