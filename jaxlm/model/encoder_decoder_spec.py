"""What an encoder-decoder is: two stacks, and what they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxlm.core.config import from_dict, require
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Specs
from jaxlm.model import decoder
from jaxlm.model.delete_gate import DeleteGate
from jaxlm.model.spec import Document, ModelSpec, mixers_of


class NotADecoder(ConfigError, AttributeError):
    """A field of `ModelSpec` asked of an encoder-decoder, by what works on decoders alone."""


@dataclasses.dataclass(frozen=True)
class EncoderDecoderSpec(Document):
    """Two stacks.

    Attributes:
      encoder: reads the source, without a head of its own (``tied_head``).
      decoder: writes the target; some of its mixers read the encoder (`CrossAttention`).
      start: the token that every target begins with, which is not part of it.
      share_embedding: both stacks look tokens up in one table.
      gate: deletes tokens within the encoder, or None.
    """

    encoder: ModelSpec
    decoder: ModelSpec
    start: int = 0
    share_embedding: bool = True
    gate: DeleteGate | None = None

    def check(self) -> None:
        one, two = self.encoder, self.decoder
        reads = lambda spec: any(
            getattr(mixer, "reads_memory", False)
            for group in spec.layers
            for block in group.pattern
            for mixer in mixers_of(block.mixer)
        )
        require(
            one.tied_head and not one.head_bias, "EncoderDecoderSpec.encoder has no head: set tied_head, no head_bias"
        )
        require(not reads(one), "EncoderDecoderSpec.encoder: a mixer that reads an encoder is for the decoder")
        require(reads(two), "EncoderDecoderSpec.decoder: no mixer reads the encoder; expected a 'cross_attention'")
        for part in ("edit", "patcher"):
            alone = getattr(one, part) is None and getattr(two, part) is None
            require(alone, f"EncoderDecoderSpec: neither stack takes the field {part}, which is for a decoder alone")
        require(one.width == two.width, f"EncoderDecoderSpec: widths {one.width} and {two.width} differ")
        require(one.dtype == two.dtype, f"EncoderDecoderSpec: dtypes {one.dtype} and {two.dtype} differ")
        tables = [(spec.vocab_size, spec.embed_width) for spec in (one, two)]
        require(
            not self.share_embedding or tables[0] == tables[1],
            f"EncoderDecoderSpec.share_embedding: tables of {tables[0][0]} and {tables[1][0]} tokens are not one",
        )
        require(0 <= self.start < two.vocab_size, f"EncoderDecoderSpec.start: {self.start} is outside the vocabulary")
        if self.gate is not None:
            require(
                self.gate.layer < one.depth,
                f"DeleteGate.layer: expected fewer than the encoder's {one.depth} blocks, got {self.gate.layer}",
            )

    @property
    def stacks(self) -> dict[str, ModelSpec]:
        """By the names of their fields."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def __getattr__(self, name: str) -> Any:
        if hasattr(ModelSpec, name):
            raise NotADecoder(
                f"an encoder-decoder model has no {name!r} of its own: this is for decoders alone; an encoder-decoder "
                "answers a source, jaxlm.generate(model, params, source)"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def param_specs(spec: EncoderDecoderSpec) -> Specs:
    """Every parameter of both stacks, and of the gate."""
    stacks = {"encoder": decoder.param_specs(spec.encoder), "decoder": decoder.param_specs(spec.decoder)}
    if spec.share_embedding:
        del stacks["encoder"]["embed"]
    return stacks | ({"gate": spec.gate.params(spec.encoder.width)} if spec.gate is not None else {})


def spec_of(data: Mapping[str, Any]) -> ModelSpec | EncoderDecoderSpec:
    """The specification of a saved dict, of either kind. Raises `ConfigError` for fields that do not fit."""
    return from_dict(EncoderDecoderSpec if "decoder" in data else ModelSpec, data)
