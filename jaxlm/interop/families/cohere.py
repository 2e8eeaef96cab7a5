"""Command R (Cohere 2024): parallel parts behind one layer norm, interleaved rotary, scaled logits."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Keys
from jaxlm.interop.layout import Piece, piecewise, plain
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

FAMILY = Family(
    model_type="cohere",
    architectures=("CohereForCausalLM",),
    paper="Cohere 2024, Command R",
    block=Block(
        mixer=Attention(qk_norm_span="heads"), ffn=Glu(), norm=LayerNorm(bias=False), residual="parallel_shared"
    ),
    parts=(
        Keys(
            {
                **parts.keys(eps="layer_norm_eps", default_eps=1e-5, tie=True),
                "logit_scale": parts.multiplier("model.logit_multiplier", 0.0625),
                "attention_bias": parts.biases(),
            }
        ),
        parts.HeadNorms("use_qk_norm", LayerNorm(bias=False)),
        Rope(pairing="interleaved", theta=500_000.0),
    ),
    tensors={
        **parts.ends(),
        **layout.norm("mixer_norm", parts.LAYER + "input_layernorm"),
        **parts.projections(),
        **parts.gated(),
        "mixer/q_norm/scale": piecewise(parts.LAYER + "self_attn.q_norm.weight", Piece("G R K", "(G R) K")),
        "mixer/k_norm/scale": plain(parts.LAYER + "self_attn.k_norm.weight"),
    },
)
