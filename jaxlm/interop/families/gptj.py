"""GPT-J (Wang and Komatsuzaki 2021): parallel parts behind one norm, interleaved partial rotary."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm
from jaxlm.position.rotary import Rotary

H = "transformer.h.{layer}."


FAMILY = Family(
    model_type="gptj",
    architectures=("GPTJForCausalLM",),
    paper="Wang and Komatsuzaki 2021, GPT-J-6B",
    block=Block(
        mixer=Attention(position=Rotary(pairing="interleaved")),
        ffn=Mlp(bias=True),
        norm=LayerNorm(),
        residual="parallel_shared",
    ),
    model={"head_bias": True},
    parts=(
        parts.gpt2_keys("gelu_new", tie=False, learned=False),
        parts.RotaryDim(),
    ),
    depth=("n_layer", "num_hidden_layers"),
    prefix="transformer.",
    buffers=(r"\.attn\.(masked_)?bias$", r"\.attn\.embed_positions$"),
    tensors={
        **layout.ends("transformer.wte", "transformer.ln_f", "lm_head"),
        **layout.norm("mixer_norm", H + "ln_1"),
        **layout.attention(H + "attn.q_proj", H + "attn.k_proj", H + "attn.v_proj", H + "attn.out_proj"),
        **layout.mlp(H + "mlp.fc_in", H + "mlp.fc_out"),
    },
)
