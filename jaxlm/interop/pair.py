"""A family of encoder-decoder checkpoints: two families, one for each stack, that read the same config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxlm.core.errors import ConfigError
from jaxlm.interop.config import Config
from jaxlm.interop.family import TOKENS, Family, differing
from jaxlm.interop.layout import Layout
from jaxlm.model.encoder_decoder_spec import EncoderDecoderSpec
from jaxlm.model.spec import Block, ModelSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(Family):
    """One architecture of two stacks with one table of embeddings, which is the decoder's.

    Attributes:
      encoder, decoder: the stacks. Of the fields of `Family`, this one's own are names, paper, prefix and buffers.
      head: the stored tensor of an untied head, which may be there whatever config.json says.
    """

    encoder: Family
    decoder: Family
    head: str
    block: Block = Block()
    parts: tuple[Any, ...] = ()
    tensors: Any = dataclasses.field(default_factory=dict)

    def read(self, c: Config) -> Any:
        """The model of a config.json. Raises `ConfigError` naming the key that cannot be served, and why."""
        start = c.integer("decoder_start_token_id", "pad_token_id", default=0)
        one, two = self.encoder.read(c), self.decoder.read(c)
        try:
            return EncoderDecoderSpec(one, two, start=start)
        except ConfigError as error:
            raise ConfigError(f"config.json: {error}") from None

    def write(self, spec: Any) -> dict[str, Any]:
        """The config.json of a model. Raises `ConfigError` naming what this family cannot express."""
        if not isinstance(spec, EncoderDecoderSpec):
            raise ConfigError(f"{self.model_type} cannot express this model: it has an encoder and a decoder")
        out = self.encoder.write(spec.encoder) | self.decoder.write(spec.decoder)
        out |= {"architectures": [self.architectures[0]], "model_type": self.model_type, "is_encoder_decoder": True}
        out["decoder_start_token_id"] = spec.start
        if found := differing(self.model_type, self.read(Config(out)), spec):
            raise ConfigError(found)
        return dict.fromkeys(TOKENS) | out

    def alike(self, spec: Any, other: Any) -> Any:
        return spec

    def stored(self, spec: Any, dtype: str, names: Collection[str]) -> Any:
        """``spec`` in its dtype; the head is untied if one is stored and logits are not scaled as tied ones are."""
        one, two = (dataclasses.replace(stack, dtype=dtype) for stack in (spec.encoder, spec.decoder))
        if self.head in names and two.logit_multiplier == 1:
            two = dataclasses.replace(two, tied_head=False)
        return dataclasses.replace(spec, encoder=one, decoder=two)

    def names(self, spec: Any) -> Mapping[str, Layout]:
        return {**self.encoder.names(spec.encoder), **self.decoder.names(spec.decoder)}

    def stacks(self, spec: Any) -> dict[str, tuple[Family, ModelSpec]]:
        return {"encoder/": (self.encoder, spec.encoder), "decoder/": (self.decoder, spec.decoder)}
