"""Encoder-decoders: two stacks of the same blocks, the second reading what the first gives.

Paper: Vaswani et al. 2017; T5 (Raffel et al. 2020), ByT5 (Xue et al. 2022), MrT5 (Kallini et al. 2024).

    decoder = ModelSpec(layers=(Group((Block(Attention(...), ffn=None), Block(CrossAttention(...), Mlp())), 6),), ...)
    model = EncoderDecoder(EncoderDecoderSpec(encoder, decoder))
    out = model.apply({"params": params}, source, tokens, source_segments=...)

Parameters are ``encoder/...``, ``decoder/...`` (each as in `jaxlm.model.declaration`) and ``gate/...``. A shared
embedding lives with the decoder.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.types import Context, Memory, Params, Specs
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder, Output, Prompt
from jaxlm.model.encode import Encoded, encode, from_gate, require_some, to_gate
from jaxlm.model.encoder_decoder_spec import EncoderDecoderSpec, param_specs
from jaxlm.model.language_model import LanguageModel, declared
from jaxlm.model.spec import ModelSpec

ROUND = 16  # generation makes room for a multiple of so many kept tokens, to compile few sizes


def forward(
    spec: EncoderDecoderSpec,
    params: Params,
    source: jax.Array | None,
    tokens: jax.Array,
    *,
    source_segments: jax.Array | None = None,
    delete: str | None = None,
    capacity: int | None = None,
    hard_rows: jax.Array | None = None,
    encoded: Encoded | None = None,
    train: bool = False,
    rng: jax.Array | None = None,
    **options: Any,
) -> Output:
    """Both stacks.

    Args:
      spec, params: the model.
      source: int32 [B, S]; None where ``encoded`` is given, or the state has read it already.
      tokens: int32 [B, L], what the decoder reads: `start`, and the target but for its last token.
      source_segments: int32 [B, S], 0 for padding; where targets are packed, a document's number on both sides.
      delete, capacity, hard_rows: of `encode`.
      encoded: what `encode` gave of the source.
      train, rng: of both stacks.
      options: of `jaxlm.model.decoder.forward`, for the decoder.

    Returns:
      The decoder's output; ``aux`` is the encoder's and the decoder's.
    """
    keys = (None, None) if rng is None else tuple(jax.random.fold_in(rng, i) for i in range(2))
    if source is not None:
        require(encoded is None, "give either a source or what it was encoded as")
        encoded = encode(
            spec,
            params,
            source,
            segments=source_segments,
            delete=delete,
            capacity=capacity,
            hard_rows=hard_rows,
            train=train,
            rng=keys[0],
        )
    memory = None if encoded is None else encoded.memory
    out = decoder.forward(spec.decoder, params["decoder"], tokens, memory=memory, train=train, rng=keys[1], **options)
    return out if encoded is None else dataclasses.replace(out, aux=encoded.aux | out.aux)


class EncoderDecoder(nn.Module):
    """An encoder-decoder as a Flax Linen module; `forward` holds the arguments' meaning.

        model = jaxlm.EncoderDecoder(spec)
        params = jaxlm.init(model, jax.random.key(0))
        out = model.apply({"params": params}, source, tokens, source_segments=mask)
        new = jaxlm.generate(model, params, source, max_new_tokens=16, stop=(1,))

    Attributes:
      spec: what the model is.
      origin: the folder it was imported from, as of `LanguageModel`.
    """

    spec: EncoderDecoderSpec
    origin: str = ""

    @property
    def pure(self) -> Transducer:
        return Transducer(self.spec)

    @nn.compact
    def __call__(
        self,
        source: jax.Array | None,
        tokens: jax.Array,
        *,
        source_segments: jax.Array | None = None,
        delete: str | None = None,
        capacity: int | None = None,
        hard_rows: jax.Array | None = None,
        encoded: Encoded | None = None,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        state: Any = None,
        train: bool = False,
        logits: bool = True,
    ) -> Output:
        return forward(
            self.spec,
            declared(self, self.pure.param_specs()),
            source,
            tokens,
            source_segments=source_segments,
            delete=delete,
            capacity=capacity,
            hard_rows=hard_rows,
            encoded=encoded,
            positions=positions,
            segment_ids=segment_ids,
            state=state,
            train=train,
            rng=self.make_rng("dropout") if train and self.has_rng("dropout") else None,
            logits=logits,
        )


def model_of(spec: ModelSpec | EncoderDecoderSpec, origin: str = "") -> LanguageModel | EncoderDecoder:
    """The Linen module of a specification."""
    return EncoderDecoder(spec, origin) if isinstance(spec, EncoderDecoderSpec) else LanguageModel(spec, origin)


def pure_of(spec: ModelSpec | EncoderDecoderSpec) -> Decoder | Transducer:
    """The pure functions of a specification."""
    return model_of(spec).pure


@dataclasses.dataclass(frozen=True)
class Transducer:
    """The pure functions of an encoder-decoder, as `jaxlm.model.decoder.Decoder` is of a decoder."""

    spec: EncoderDecoderSpec

    @property
    def stacks(self) -> dict[str, ModelSpec]:
        return self.spec.stacks

    @property
    def reader(self) -> ModelSpec:
        return self.spec.encoder

    @property
    def writer(self) -> ModelSpec:
        return self.spec.decoder

    def param_specs(self) -> Specs:
        return param_specs(self.spec)

    def __call__(self, params: Params, tokens: jax.Array, *, source: jax.Array | None = None, **options: Any) -> Output:
        return forward(self.spec, params, source, tokens, **options)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        return decoder.unembed(self.spec.decoder, params["decoder"], hidden)

    def draw(self, key: jax.Array, positions: jax.Array, *, train: bool = False) -> jax.Array | None:
        return decoder.draw_positions(self.spec.decoder, key, positions, train=train)

    def prompt(self, params: Params, tokens: Any, lengths: Any) -> Prompt:
        """The start token, and a source [B, L], padded on the right, as the decoder reads it; a gate deletes for good.

        Raises `ConfigError` if the gate deletes the whole batch.
        """
        tokens = jnp.asarray(tokens, jnp.int32)
        segments = (jnp.arange(tokens.shape[1]) < jnp.asarray(lengths)[:, None]).astype(jnp.int32)
        if self.spec.gate is None:
            memory = _encoded(self.spec, params, tokens, segments)
        else:
            half = _half(self.spec, params, tokens, segments)
            require_some(half.keep)
            longest = int(np.asarray(half.keep).sum(1).max())
            capacity = min(-(-longest // ROUND) * ROUND, tokens.shape[1])
            memory = _other_half(self.spec, capacity, params, half)
        batch = len(tokens)
        return Prompt(
            np.full((batch, 1), self.spec.start, np.int32), np.ones(batch, np.int32), params["decoder"], memory
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Half:
    """What the layers behind the gate need of those before it."""

    x: jax.Array
    positions: jax.Array
    segments: jax.Array
    shared: Any
    embedded: jax.Array
    keep: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _encoded(spec: EncoderDecoderSpec, params: Params, tokens: jax.Array, segments: jax.Array) -> Memory:
    return encode(spec, params, tokens, segments=segments).memory


@functools.partial(jax.jit, static_argnums=0)
def _half(spec: EncoderDecoderSpec, params: Params, tokens: jax.Array, segments: jax.Array) -> _Half:
    assert spec.gate is not None
    x, ctx = to_gate(spec, params, tokens, segments)
    keep = spec.gate.keeps(spec.gate(params["gate"], x, segments != 0))
    assert ctx.embedded is not None
    return _Half(x, ctx.positions, segments, ctx.shared, ctx.embedded, keep)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _other_half(spec: EncoderDecoderSpec, capacity: int, params: Params, half: _Half) -> Memory:
    ctx = Context(half.positions, half.segments, shared=half.shared, embedded=half.embedded)
    return from_gate(spec, params, half.x, ctx, delete="hard", capacity=capacity, keep=half.keep).memory
