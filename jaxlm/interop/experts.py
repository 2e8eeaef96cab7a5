"""Parts of settings that mixtures of experts share: which layers have experts, and where their tensors go."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxlm.ffn.glu import Glu
from jaxlm.ffn.moe import Moe
from jaxlm.interop import layout
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft
from jaxlm.interop.parts import LAYER, positive
from jaxlm.model.spec import Block, ModelSpec


class DenseLayers:
    """Which layers of a mixture of experts are plain (Qwen): every so many, and those listed."""

    def read(self, c: Config, draft: Draft) -> None:
        step, plain = positive(c, "decoder_sparse_step", 1), c.sequence("mlp_only_layers", default=[])
        hidden = c.integer("intermediate_size")
        for i, block in enumerate(draft.blocks):
            if i in plain or (i + 1) % step:
                draft.set("ffn", Glu(hidden=hidden, activation=block.ffn.expert.activation), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        plain = [i for i, block in enumerate(blocks) if isinstance(block.ffn, Glu)]
        hidden = blocks[plain[0]].ffn.hidden if plain else blocks[0].ffn.expert.hidden
        return {"decoder_sparse_step": 1, "mlp_only_layers": plain, "intermediate_size": hidden}


@dataclasses.dataclass(frozen=True)
class FirstDense:
    """The first layers are plain; the others have experts, and what all tokens share is some experts wide (DeepSeek).

    Attributes:
      count: of plain layers where config.json does not say.
    """

    count: int

    def read(self, c: Config, draft: Draft) -> None:
        hidden, shared = c.integer("intermediate_size"), positive(c, "n_shared_experts", 1)
        dense = c.integer("first_k_dense_replace", default=self.count)
        for i, block in enumerate(draft.blocks):
            if i < dense:
                draft.set("ffn", Glu(hidden=hidden, activation=block.ffn.expert.activation), i)
            else:
                draft.set("ffn.shared.hidden", shared * block.ffn.expert.hidden, i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        dense = [block.ffn for block in blocks if isinstance(block.ffn, Glu)]
        sparse = next(block.ffn for block in blocks if isinstance(block.ffn, Moe))
        hidden = dense[0].hidden if dense else sparse.expert.hidden
        shared = sparse.shared.hidden // sparse.expert.hidden
        return {"intermediate_size": hidden, "first_k_dense_replace": len(dense), "n_shared_experts": shared}


def tensors(
    at: str = LAYER + "mlp.", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> dict[str, layout.Layout]:
    """A router and gated experts of three tensors each."""
    one = at + "experts.{expert}."
    return {
        "ffn/router/kernel": layout.transposed(at + "gate.weight"),
        **layout.glu(one + gate, one + up, one + down, "ffn/experts"),
    }


def corrected() -> dict[str, layout.Layout]:
    """DeepSeek's tensors: a router with a correction, experts, and what all tokens share."""
    shared = LAYER + "mlp.shared_experts."
    return {
        **tensors(),
        "ffn/router/correction": layout.plain(LAYER + "mlp.gate.e_score_correction_bias"),
        **layout.glu(shared + "gate_proj", shared + "up_proj", shared + "down_proj", "ffn/shared"),
    }


def stacked(at: str) -> dict[str, layout.Layout]:
    """Granite's tensors: a router, all experts' gates and ups in one, their outputs in another."""
    gate, up = (layout.Piece("E D F", "E F D", np.s_[..., i]) for i in (0, 1))
    return {
        "ffn/router/kernel": layout.transposed(at + "router.layer.weight"),
        "ffn/experts/in": layout.piecewise(at + "input_linear.weight", gate, up, axis=1),
        "ffn/experts/out": layout.piecewise(at + "output_linear.weight", layout.Piece("E F D", "E D F")),
    }
