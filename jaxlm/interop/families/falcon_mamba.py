"""Falcon Mamba (Zuo et al. 2024): Mamba with what step sizes, B and C come from normalised, without gains."""

from __future__ import annotations

from jaxlm.interop import state_space
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.mixer.mamba import Mamba
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="falcon_mamba",
    architectures=("FalconMambaForCausalLM",),
    paper="Zuo et al. 2024, Falcon Mamba: The First Competitive Attention-free 7B Language Model",
    block=Block(mixer=Mamba(inner_norm="plain"), ffn=None),
    parts=(
        Keys({**state_space.mamba_keys(), "mixer_rms_eps": Key("mixer.norm_eps", float, 1e-6)}),
        state_space.SILU,
    ),
    prefix="backbone.",
    renamed=state_space.OLD_NAMES,
    tensors={**state_space.backbone(), **state_space.mamba(state_space.BACKBONE + "mixer.")},
)
