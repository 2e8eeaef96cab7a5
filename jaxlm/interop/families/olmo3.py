"""OLMo 3 (OLMo team 2025): OLMo 2 with windows in three layers of four, whose rotation is never scaled."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="olmo3",
    architectures=("Olmo3ForCausalLM",),
    paper="OLMo team 2025, OLMo 3",
    block=Block(mixer=Attention(qk_norm="rms", qk_norm_span="all"), ffn=Glu(), placement="output"),
    parts=(
        Keys(
            {
                **parts.keys(default_eps=1e-5, qk_norm=True),
                "attention_bias": parts.biases(),
            }
        ),
        parts.Windows(lambda c, i: bool((i + 1) % 4), size=4096),
        Rope(theta=500_000.0, local="rope_theta", local_theta=500_000.0),
    ),
    tensors={
        **parts.ends(),
        **parts.output_norms(),
        **parts.projections(),
        **parts.gated(),
        **parts.joint_qk_norms(),
    },
)
