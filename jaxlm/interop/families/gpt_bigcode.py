"""GPTBigCode (Li et al. 2023, StarCoder): GPT-2 with one key and value head for all queries."""

from __future__ import annotations

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.family import Family, Key, Keys, Only
from jaxlm.interop.layout import plain
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block
from jaxlm.norm.layer import LayerNorm

H = "transformer.h.{layer}."

FAMILY = Family(
    model_type="gpt_bigcode",
    architectures=("GPTBigCodeForCausalLM",),
    paper="Li et al. 2023, StarCoder: may the source be with you!",
    block=Block(
        mixer=Attention(position="learned", qkv_bias=True, out_bias=True), ffn=Mlp(bias=True), norm=LayerNorm()
    ),
    parts=(
        Keys(
            {
                **parts.gpt2_keys("gelu_pytorch_tanh"),
                "num_key_value_heads": Key((), default=0),  # follows from the next
                "multi_query": Key("mixer.kv_heads", bool, True, lambda one: int(one), lambda kv_heads: kv_heads == 1),
            }
        ),
        Only("add_cross_attention", (False,), "there is no encoder"),
    ),
    depth=("n_layer", "num_hidden_layers"),
    prefix="transformer.",
    buffers=(r"\.attn\.(masked_)?bias$",),
    tensors={
        **layout.ends("transformer.wte", "transformer.ln_f", "lm_head"),
        "position/learned/table": plain("transformer.wpe.weight"),
        **layout.norm("mixer_norm", H + "ln_1"),
        **layout.norm("ffn_norm", H + "ln_2"),
        **layout.attention_by_group(H + "attn.c_attn", H + "attn.c_proj"),
        **layout.mlp(H + "mlp.c_fc", H + "mlp.c_proj"),
    },
)
