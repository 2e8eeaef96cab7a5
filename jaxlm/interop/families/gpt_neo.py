"""GPT-Neo (Black et al. 2021): GPT-2 with unscaled logits and a window in every other layer."""

from __future__ import annotations

from typing import Any

from jaxlm.attention.mask import Window
from jaxlm.core.errors import ConfigError, shown
from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.layout import plain
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

H = "transformer.h.{layer}."
A = H + "attn.attention."


class AttentionTypes:
    """Which layers are local: runs of names, ``[[["global", "local"], 12]]``, which ``attention_layers`` spells out."""

    def read(self, c: Config, draft: Draft) -> None:
        size, depth = c.integer("window_size", default=256), len(draft.blocks)
        runs = c.sequence("attention_types", default=[[["global", "local"], 12]])
        try:
            kinds = [kind for names, count in runs for _ in range(count) for kind in names]
        except (TypeError, ValueError):
            raise ConfigError(
                f'config.json: attention_types should be like [[["global", "local"], 12]], got {shown(runs)}'
            ) from None
        if len(kinds) != depth:
            raise ConfigError(f"config.json: attention_types has {len(kinds)} entries for {depth} layers")
        if odd := [kind for kind in kinds if kind not in ("global", "local")]:
            raise ConfigError(f"config.json: attention_types has {shown(odd[0])}; allowed: global, local")
        c.only("attention_layers", (kinds,), "it repeats attention_types")
        for i, kind in enumerate(kinds):
            if kind == "local":
                draft.set("mixer.mask", Window(size), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        masks = [block.mixer.mask for block in blocks]
        kinds = ["local" if isinstance(mask, Window) else "global" for mask in masks]
        size = next((mask.size for mask in masks if isinstance(mask, Window)), 256)
        return {"attention_types": [[kinds, 1]], "attention_layers": kinds, "window_size": size}


FAMILY = Family(
    model_type="gpt_neo",
    architectures=("GPTNeoForCausalLM",),
    paper="Black et al. 2021, GPT-Neo: Large Scale Autoregressive Language Modeling with Mesh-Tensorflow",
    block=Block(mixer=Attention(position="learned", scale=1.0, out_bias=True), ffn=Mlp(bias=True), norm=LayerNorm()),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "hidden_size": Key("model.width"),
                "num_heads": Key("mixer.heads", also=("num_attention_heads",)),
                "max_position_embeddings": Key("mixer.position.size", default=2048),
                "intermediate_size": Key("ffn.hidden", default=lambda c: 4 * parts.width_of(c)),
                "activation_function": parts.activation("gelu_new"),
                "layer_norm_epsilon": Key("norm.eps", float, 1e-5),
                "tie_word_embeddings": parts.tied(True),
            }
        ),
        AttentionTypes(),
    ),
    depth=("num_layers", "num_hidden_layers"),
    prefix="transformer.",
    buffers=(r"\.attn\.attention\.(masked_)?bias$",),
    tensors={
        **layout.ends("transformer.wte", "transformer.ln_f", "lm_head"),
        "position/learned/table": plain("transformer.wpe.weight"),
        **layout.norm("mixer_norm", H + "ln_1"),
        **layout.norm("ffn_norm", H + "ln_2"),
        **layout.attention(A + "q_proj", A + "k_proj", A + "v_proj", A + "out_proj"),
        **layout.mlp(H + "mlp.c_fc", H + "mlp.c_proj"),
    },
)
