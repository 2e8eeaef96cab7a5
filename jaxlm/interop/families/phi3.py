"""Phi 3 and 4 (Microsoft 2024): Llama with fused projections, windows, and longrope."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="phi3",
    architectures=("Phi3ForCausalLM",),
    paper="Abdin et al. 2024, Phi-3 Technical Report",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(
        parts.keys(default_eps=1e-5),
        parts.Windows(listed=False),
        Rope(aliases=(("su", "longrope"), ("yarn", "longrope"))),
    ),
    tensors={
        **parts.ends(),
        **parts.pre_norms(),
        **layout.attention_in_turn(parts.LAYER + "self_attn.qkv_proj", parts.LAYER + "self_attn.o_proj"),
        **parts.fused_gated(),
    },
)
