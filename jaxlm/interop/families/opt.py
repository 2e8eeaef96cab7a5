"""OPT (Zhang et al. 2022): learned positions from row 2 on, ReLU; 350M: norms after residuals, narrow embeddings."""

from __future__ import annotations

from typing import Any

from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only
from jaxlm.interop.layout import plain, transposed
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm
from jaxlm.position.learned import Learned

L = "model.decoder.layers.{layer}."


class Ends:
    """The final norm, which models with norms after the residuals lack, and the width of the embeddings."""

    def read(self, c: Config, draft: Draft) -> None:
        width = parts.width_of(c)
        inner = c.integer("word_embed_proj_dim", default=width)
        draft.set("model.embed_width", 0 if inner == width else inner)
        removed = c.flag("_remove_final_layer_norm", default=False)
        if removed or draft.blocks[0].placement != "pre":
            draft.set("model.norm", None)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        removed = blocks[0].placement == "pre" and spec.norm is None
        return {"word_embed_proj_dim": spec.embed_width or spec.width, "_remove_final_layer_norm": removed}


FAMILY = Family(
    model_type="opt",
    architectures=("OPTForCausalLM",),
    paper="Zhang et al. 2022, OPT: Open Pre-trained Transformer Language Models",
    block=Block(mixer=Attention(position=Learned(offset=2)), ffn=Mlp(), norm=LayerNorm()),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "hidden_size": Key("model.width"),
                "num_attention_heads": Key("mixer.heads"),
                "ffn_dim": Key("ffn.hidden", default=3072),
                "activation_function": parts.activation("relu"),
                "max_position_embeddings": Key("mixer.position.size", default=2048),
                "do_layer_norm_before": Key(
                    "placement", bool, True, lambda on: "pre" if on else "post", lambda placement: placement == "pre"
                ),
                "enable_bias": Key(("mixer.qkv_bias", "mixer.out_bias", "ffn.bias"), bool, True),
                "tie_word_embeddings": parts.tied(True),
            }
        ),
        Ends(),
        Only("layer_norm_elementwise_affine", (True,), "norms have gains"),
    ),
    tensors={
        **layout.ends("model.decoder.embed_tokens", "model.decoder.final_layer_norm", "lm_head"),
        "embed/up": transposed("model.decoder.project_in.weight"),
        "head/down": transposed("model.decoder.project_out.weight"),
        "position/learned/table": plain("model.decoder.embed_positions.weight"),
        **layout.norm("mixer_norm", L + "self_attn_layer_norm"),
        **layout.norm("ffn_norm", L + "final_layer_norm"),
        **layout.attention(
            L + "self_attn.q_proj", L + "self_attn.k_proj", L + "self_attn.v_proj", L + "self_attn.out_proj"
        ),
        **layout.mlp(L + "fc1", L + "fc2"),
    },
)
