"""CodeGen (Nijkamp et al. 2022): GPT-J with q, v and k fused in four blocks of heads, as its training was sharded."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxlm.core.errors import ConfigError
from jaxlm.ffn.mlp import Mlp
from jaxlm.interop import layout, parts
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family
from jaxlm.interop.layout import Piece, piecewise
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.norm.layer import LayerNorm
from jaxlm.position.rotary import Rotary

H = "transformer.h.{layer}."
BLOCKS = 4


class Blocks:
    """The heads form blocks of one size."""

    def read(self, c: Config, draft: Draft) -> None:
        if (heads := parts.heads_of(c)) % BLOCKS:
            raise ConfigError(f"config.json: n_head = {heads} is not supported; allowed: multiples of {BLOCKS}")

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {}


def tensors(spec: ModelSpec) -> dict[str, layout.Layout]:
    """How many heads a block has depends on the model."""
    size = spec.layers[0].pattern[0].mixer.heads // BLOCKS
    query, key, value = 0, 1, 2
    pieces = [
        Piece("D G K", "(G K) D", np.s_[:, block * size : (block + 1) * size, part])
        for block in range(BLOCKS)
        for part in (query, value, key)
    ]
    return {
        **layout.ends("transformer.wte", "transformer.ln_f", "lm_head"),
        **layout.norm("mixer_norm", H + "ln_1"),
        "mixer/qkv": piecewise(H + "attn.qkv_proj.weight", *pieces),
        **layout.output(H + "attn.out_proj"),
        **layout.mlp(H + "mlp.fc_in", H + "mlp.fc_out"),
    }


FAMILY = Family(
    model_type="codegen",
    architectures=("CodeGenForCausalLM",),
    paper="Nijkamp et al. 2022, CodeGen: An Open Large Language Model for Code with Multi-Turn Program Synthesis",
    block=Block(
        mixer=Attention(position=Rotary(pairing="interleaved")),
        ffn=Mlp(bias=True),
        norm=LayerNorm(),
        residual="parallel_shared",
    ),
    model={"head_bias": True},
    parts=(
        parts.gpt2_keys("gelu_new", tie=False, learned=False),
        Blocks(),
        parts.RotaryDim(),
    ),
    depth=("n_layer", "num_hidden_layers"),
    prefix="transformer.",
    buffers=(r"\.attn\.(causal_mask|bias|masked_bias|embed_positions)$",),
    tensors=tensors,
)
