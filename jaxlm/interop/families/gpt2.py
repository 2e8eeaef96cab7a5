"""GPT-2 (Radford et al. 2019): learned positions, weights stored (in, out)."""

from __future__ import annotations

from typing import Any

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Only
from jaxlm.interop.layout import plain
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

H = "transformer.h.{layer}."


class InverseLayerScale:
    """Layer i divides its logits by i + 1 where the flag says so (the Mistral project's GPT-2s)."""

    def read(self, c: Config, draft: Draft) -> None:
        if c.flag("scale_attn_by_inverse_layer_idx", default=False):
            for i, block in enumerate(draft.blocks):
                scale = block.mixer.scale or parts.head_dim_of(c) ** -0.5
                draft.set("mixer.scale", scale / (i + 1), i)
        c.only("reorder_and_upcast_attn", (False, True), "")  # the same numbers in another order

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {"scale_attn_by_inverse_layer_idx": len({block.mixer.scale for block in blocks}) > 1}


FAMILY = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel",),
    paper="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    block=Block(
        mixer=Attention(position="learned", qkv_bias=True, out_bias=True), ffn=Mlp(bias=True), norm=LayerNorm()
    ),
    parts=(
        parts.gpt2_keys("gelu_new"),
        InverseLayerScale(),
        Only("add_cross_attention", (False,), "there is no encoder"),
    ),
    depth=("n_layer", "num_hidden_layers"),
    prefix="transformer.",
    buffers=(r"\.attn\.(masked_)?bias$",),
    renamed={r"\.gamma$": ".weight", r"\.beta$": ".bias"},
    tensors={
        **layout.ends("transformer.wte", "transformer.ln_f", "lm_head"),
        "position/learned/table": plain("transformer.wpe.weight"),
        **layout.norm("mixer_norm", H + "ln_1"),
        **layout.norm("ffn_norm", H + "ln_2"),
        **layout.attention_in_turn(H + "attn.c_attn", H + "attn.c_proj", transpose=False),
        **layout.mlp(H + "mlp.c_fc", H + "mlp.c_proj", plain),
    },
)
