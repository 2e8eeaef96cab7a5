"""DeepSeek-V3 (DeepSeek-AI 2024): latent attention, grouped experts, dense first layers."""

from __future__ import annotations

from typing import Any

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.interop import experts, layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys, Only
from jaxlm.interop.layout import Piece, piecewise, plain, transposed
from jaxlm.interop.rope import Rope
from jaxlm.mixer.mla import Mla
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling.yarn import Yarn, magnitude

A = parts.LAYER + "self_attn."


class LogitScale:
    """YaRN's magnitude for all dimensions, squared, multiplies the logits' scale; no key says so."""

    def read(self, c: Config, draft: Draft) -> None:
        for i, block in enumerate(draft.blocks):
            scaling, mixer = block.mixer.position.scaling, block.mixer
            if isinstance(scaling, Yarn) and scaling.mscale_all:
                scale = (mixer.nope_dim + mixer.rope_dim) ** -0.5
                draft.set("mixer.scale", scale * magnitude(scaling.factor, scaling.mscale_all) ** 2, i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {}


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    """Queries come from a latent, or straight from the input under another name."""
    query = "q_b_proj" if spec.layers[0].pattern[0].mixer.q_rank else "q_proj"
    return {
        "mixer/q_up": piecewise(f"{A}{query}.weight", Piece("C H K", "(H K) C")),
        **parts.ends(),
        **parts.pre_norms(),
        **parts.gated(),
        "mixer/q_down": transposed(A + "q_a_proj.weight"),
        "mixer/q_down_bias": plain(A + "q_a_proj.bias"),
        **layout.norm("mixer/q_norm", A + "q_a_layernorm"),
        "mixer/kv_down": transposed(A + "kv_a_proj_with_mqa.weight"),
        "mixer/kv_down_bias": plain(A + "kv_a_proj_with_mqa.bias"),
        **layout.norm("mixer/kv_norm", A + "kv_a_layernorm"),
        "mixer/kv_up": piecewise(A + "kv_b_proj.weight", Piece("C H K", "(H K) C")),
        "mixer/out": piecewise(A + "o_proj.weight", Piece("H K D", "D (H K)")),
        "mixer/out_bias": plain(A + "o_proj.bias"),
        **experts.corrected(),
    }


FAMILY = Family(
    model_type="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    paper="DeepSeek-AI 2024, DeepSeek-V3 Technical Report",
    block=Block(
        mixer=Mla(position=Rotary(pairing="interleaved")),
        ffn=Moe(
            expert=Glu(),
            shared=Glu(),
            router=Router(score="sigmoid", correction=True, normalize=True, groups=1, top_groups=1),
        ),
    ),
    parts=(
        Keys(
            {
                "vocab_size": Key("model.vocab_size"),
                "hidden_size": Key("model.width"),
                "num_key_value_heads": Key("mixer.heads", default=parts.heads_of),  # as many as the next, which counts
                "num_attention_heads": Key("mixer.heads"),
                "q_lora_rank": Key("mixer.q_rank", default=1536, theirs=lambda rank: rank or None, null=0),
                "kv_lora_rank": Key("mixer.kv_rank", default=512),
                "qk_nope_head_dim": Key("mixer.nope_dim", default=128),
                "qk_rope_head_dim": Key("mixer.rope_dim", default=64),
                "v_head_dim": Key("mixer.value_dim", default=128),
                "attention_bias": Key("mixer.bias", bool, False),
                "moe_intermediate_size": Key("ffn.expert.hidden", default=2048),
                "hidden_act": parts.activation("silu", paths=("ffn.expert.activation", "ffn.shared.activation")),
                "n_routed_experts": Key("ffn.experts", default=256, also=("num_local_experts",)),
                "n_group": Key("ffn.router.groups", default=8),
                "topk_group": Key("ffn.router.top_groups", default=4),
                "num_experts_per_tok": Key("ffn.router.top_k", default=8),
                "norm_topk_prob": Key("ffn.router.normalize", bool, True),
                "routed_scaling_factor": Key("ffn.router.scale", float, 2.5),
                "rms_norm_eps": Key("norm.eps", float, 1e-6),
                "tie_word_embeddings": parts.tied(False),
            }
        ),
        Keys({name: Key((), default=0) for name in ("head_dim", "qk_head_dim", "num_nextn_predict_layers", "ep_size")}),
        Only("moe_layer_freq", (1,), "every later layer has experts"),
        Only("topk_method", ("noaux_tc",), "experts are chosen by corrected scores"),
        Only("scoring_func", ("sigmoid",), "scores are sigmoids"),
        Only("rope_interleave", (True,), "neighbouring channels make a pair"),
        experts.FirstDense(3),
        Rope(pairing="interleaved"),
        LogitScale(),
    ),
    buffers=(r"rotary_emb\.inv_freq$", r"^model\.layers\.61\."),  # the head that predicts two tokens on
    tensors=tensors,
)
