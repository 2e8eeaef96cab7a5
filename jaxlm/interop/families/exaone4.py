"""EXAONE 4 (LG AI Research 2025): norms on what each part adds; windows with rotary, full layers without positions."""

from __future__ import annotations

from typing import Any

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts, rope
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Family, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.position.none import NoPosition

WINDOW = 4096  # where config.json does not say


class Positions:
    """Full layers have none, unless ``sliding_window`` is null: then all layers are full and have them."""

    def read(self, c: Config, draft: Draft) -> None:
        if c.look_up("sliding_window", int, WINDOW, null=None):
            for i, block in enumerate(draft.blocks):
                if not rope.is_local(block.mixer):
                    draft.set("mixer.position", NoPosition(), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {} if any(rope.is_local(block.mixer) for block in blocks) else {"sliding_window": None}


FAMILY = Family(
    model_type="exaone4",
    architectures=("Exaone4ForCausalLM",),
    paper="LG AI Research 2025, EXAONE 4.0: Unified Large Language Models",
    block=Block(mixer=Attention(qk_norm="rms"), ffn=Glu(), placement="output"),
    parts=(
        Keys(
            {
                **parts.keys(default_eps=1e-5, qk_norm=True),
            }
        ),
        parts.Windows(lambda c, i: bool((i + 1) % parts.positive(c, "sliding_window_pattern", 4)), size=WINDOW),
        Positions(),
        Rope(),
    ),
    tensors={**parts.ends(), **parts.output_norms(), **parts.projections(), **parts.gated(), **parts.qk_norms()},
)
