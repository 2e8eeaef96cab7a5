"""RWKV-4 (Peng et al. 2023): time mixing, then channel mixing; each is a block of ours, two to a stored layer.

transformers halves the stream after every ``rescale_every`` layers when it runs, against overflow in float16, and the
weights that add to it. That changes nothing but how much a norm's epsilon weighs, and is left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlm.interop import layout, parts, state_space
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Key, Keys
from jaxlm.interop.layout import Piece, piecewise, plain, transposed
from jaxlm.mixer.rwkv4 import Rwkv4
from jaxlm.mixer.rwkv_channel import RwkvChannel
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm

B = "rwkv.blocks.{layer}."


class Halves:
    """Two blocks to a layer."""

    def read(self, c: Config, draft: Draft) -> None:
        halves = (Rwkv4(), RwkvChannel())
        draft.blocks = [dataclasses.replace(block, mixer=half) for block in draft.blocks for half in halves]

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {"num_hidden_layers": len(blocks) // 2}


def half(at: str, norm: str, **tensors: str) -> dict[str, layout.Layout]:
    """A half's norm, mixtures and projections: ours, and what is stored under the name."""
    mixtures = {name: theirs for name, theirs in tensors.items() if name.startswith("mu")}
    return {
        **layout.norm("mixer_norm", norm),
        **{f"mixer/{n}": piecewise(f"{at}{theirs}", Piece("D", "() () D")) for n, theirs in mixtures.items()},
        **{f"mixer/{n}": transposed(f"{at}{theirs}.weight") for n, theirs in tensors.items() if n not in mixtures},
    }


MIXTURES = {"mu_k": "time_mix_key", "mu_r": "time_mix_receptance"}
TIME = {
    **half(
        B + "attention.",
        B + "ln1",
        **MIXTURES,
        mu_v="time_mix_value",
        k="key",
        v="value",
        r="receptance",
        out="output",
    ),
    "mixer/decay": plain(B + "attention.time_decay"),
    "mixer/bonus": plain(B + "attention.time_first"),
}
CHANNEL = half(B + "feed_forward.", B + "ln2", **MIXTURES, k="key", v="value", r="receptance")

FAMILY = Family(
    model_type="rwkv",
    architectures=("RwkvForCausalLM",),
    paper="Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era",
    block=Block(mixer=Rwkv4(), ffn=None, norm=LayerNorm()),
    model={"norm": LayerNorm(), "embed_norm": LayerNorm()},  # the last one's epsilon has no key
    parts=(
        Halves(),
        Keys(
            {
                "vocab_size": Key("model.vocab_size", default=50277),
                "hidden_size": Key("model.width", default=4096),
                "attention_hidden_size": Key("rwkv4.width", default=0),
                "intermediate_size": Key("rwkv_channel.hidden", default=0),
                "layer_norm_epsilon": Key(("norm.eps", "model.embed_norm.eps"), float, 1e-5),
                "tie_word_embeddings": parts.tied(False),
                **state_space.unused(context_length=1024, max_position_embeddings=1024, rescale_every=6),
            }
        ),
    ),
    prefix="rwkv.",
    layer=lambda blocks: [n // 2 for n in range(len(blocks))],
    tensors={
        **layout.ends("rwkv.embeddings", "rwkv.ln_out", "head"),
        **layout.norm("embed_norm", "rwkv.blocks.0.pre_ln"),
        **layout.only("rwkv4", TIME),
        **layout.only("rwkv_channel", CHANNEL),
    },
)
