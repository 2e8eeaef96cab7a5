"""OLMo 2 (OLMo team 2025): norms on what each part adds, and one norm over the queries (keys) of all heads."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM",),
    paper="OLMo team 2025, 2 OLMo 2 Furious",
    block=Block(mixer=Attention(qk_norm="rms", qk_norm_span="all"), ffn=Glu(), placement="output"),
    parts=(
        Keys(
            {
                **parts.keys(default_eps=1e-5, qk_norm=True),
                "attention_bias": parts.biases(),
            }
        ),
        Rope(),
    ),
    tensors={
        **parts.ends(),
        **parts.output_norms(),
        **parts.projections(),
        **parts.gated(),
        **parts.joint_qk_norms(),
    },
)
