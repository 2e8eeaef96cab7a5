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
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlm.core.config import from_dict, require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.types import Context, Memory, Params, Specs
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder, Output, Prompt
from jaxlm.model.delete_gate import DeleteGate, compact
from jaxlm.model.inputs import Inputs, begin
from jaxlm.model.language_model import LanguageModel, declared
from jaxlm.model.layers import apply_layers
from jaxlm.model.positions import plain_positions
from jaxlm.model.spec import Document, ModelSpec, mixers_of

DELETIONS = ("none", "soft", "hard")
GONE = -1e4  # added to the logits of what is out of reach
ROUND = 16  # generation makes room for a multiple of so many kept tokens, to compile few sizes


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """What an encoder makes of a source.

    Attributes:
      memory: for the decoder; of S = L places, or C after a hard deletion.
      positions: int32 [B or 1, S], those that the tokens have in the source.
      aux: what layers and gate report, float32 scalars by name.
      gate: G, float32 [B, L], or None.
      overflow: int32 [B], tokens that a hard deletion kept and had no place for.
    """

    memory: Memory
    positions: jax.Array
    aux: dict[str, jax.Array]
    gate: jax.Array | None = None
    overflow: jax.Array | None = None


def param_specs(spec: EncoderDecoderSpec) -> Specs:
    """Every parameter of both stacks, and of the gate."""
    stacks = {"encoder": decoder.param_specs(spec.encoder), "decoder": decoder.param_specs(spec.decoder)}
    if spec.share_embedding:
        del stacks["encoder"]["embed"]
    return stacks | ({"gate": spec.gate.params(spec.encoder.width)} if spec.gate is not None else {})


def encoder_params(spec: EncoderDecoderSpec, params: Params) -> Params:
    """The parameters of the encoder as a model of its own."""
    return {**params["encoder"], "embed": params["decoder"]["embed"]} if spec.share_embedding else params["encoder"]


def to_gate(
    spec: EncoderDecoderSpec, params: Params, source: jax.Array, segments: jax.Array | None = None, **options: Any
) -> tuple[jax.Array, Context]:
    """The hidden states [B, L, D] that the gate reads, and the context of the layers behind it; ``options`` are of
    `jaxlm.model.inputs.Inputs`."""
    own, gate = encoder_params(spec, params), spec.gate
    assert gate is not None
    x, ctx, _ = begin(spec.encoder, own, source, Inputs(segment_ids=segments, **options))
    return apply_layers(spec.encoder, own, x, ctx, layers=(0, gate.layer))[0], ctx


def encode(
    spec: EncoderDecoderSpec,
    params: Params,
    source: jax.Array,
    *,
    segments: jax.Array | None = None,
    delete: str | None = None,
    capacity: int | None = None,
    keep: jax.Array | None = None,
    hard_rows: jax.Array | None = None,
    **options: Any,
) -> Encoded:
    """The encoder on a source.

    Args:
      spec, params: the model.
      source: int32 [B, L].
      segments: int32 [B, L], 0 for padding; None for one document per row.
      delete: ``"soft"``, ``"hard"`` or ``"none"``; None for soft where the model has a gate.
      capacity: C, the places of what a hard deletion keeps; None for L. Fewer make the later layers cheaper.
      keep: boolean [B, L], what a hard deletion keeps in place of what the gate says.
      hard_rows: boolean [B], rows of a soft deletion that are read as after a hard one, in their places: what the gate
        deletes is out of reach, and what it keeps counts in full.
      options: of `jaxlm.model.inputs.Inputs`: positions, train, rng, ...

    Raises:
      ConfigError: a deletion without a gate, one that leaves nothing of the whole batch (where values are known: within
        a jit the memory is then empty), or a capacity beyond L.
    """
    gate, own = spec.gate, encoder_params(spec, params)
    delete = choose("delete", delete or ("none" if gate is None else "soft"), DELETIONS)
    require(gate is not None or delete == "none", f"delete {delete!r}: the model has no DeleteGate")
    require(delete == "hard" or (capacity is None and keep is None), f"delete {delete!r} takes no capacity and no keep")
    require(delete == "soft" or hard_rows is None, f"delete {delete!r} takes no hard_rows")
    if gate is None or delete == "none":
        out = decoder.forward(spec.encoder, own, source, segment_ids=segments, logits=False, **options)
        batch, size = source.shape
        positions = options.get("positions")
        positions = plain_positions(batch, size, segments) if positions is None else positions
        return Encoded(Memory(out.hidden, segments), positions, out.aux)
    x, ctx = to_gate(spec, params, source, segments, **options)
    return from_gate(spec, params, x, ctx, delete=delete, capacity=capacity, keep=keep, hard_rows=hard_rows)


def from_gate(
    spec: EncoderDecoderSpec,
    params: Params,
    x: jax.Array,
    ctx: Context,
    *,
    delete: str,
    capacity: int | None = None,
    keep: jax.Array | None = None,
    hard_rows: jax.Array | None = None,
) -> Encoded:
    """The gate, and the layers of the encoder behind it, from what `to_gate` gives; arguments are those of `encode`."""
    gate, own, (batch, length) = spec.gate, encoder_params(spec, params), x.shape[:2]
    assert gate is not None
    segments = jnp.ones((batch, length), jnp.int32) if ctx.segment_ids is None else ctx.segment_ids
    real = segments != 0
    values = gate(params["gate"], x, real)
    report, overflow = gate.report(values, real), None
    if delete == "soft":
        counts = values
        if hard_rows is not None:
            counts = jnp.where(hard_rows[:, None], jnp.where(gate.keeps(values), 0.0, GONE), values)
        ctx = dataclasses.replace(ctx, key_bias=counts, segment_ids=segments)
    else:
        keep = gate.keeps(values) if keep is None else keep & real
        if not isinstance(keep, Tracer):
            require_some(keep)
        kept = compact(keep, capacity or length)
        overflow = kept.overflow
        take = lambda rows: jnp.take_along_axis(jnp.broadcast_to(rows, (batch, length)), kept.index, 1)
        take_tokens = lambda x: jnp.take_along_axis(x, kept.index[:, :, None], 1)
        x = take_tokens(x)
        ctx = dataclasses.replace(
            ctx,
            positions=take(ctx.positions),
            segment_ids=jnp.where(kept.filled, take(segments), 0),
            slots=False,
            embedded=take_tokens(ctx.embedded),
        )
    x, _, aux = apply_layers(spec.encoder, own, x, ctx, layers=(gate.layer, spec.encoder.depth))
    if spec.encoder.norm is not None:
        x = spec.encoder.norm(own["final_norm"], x)
    return Encoded(Memory(x, ctx.segment_ids, ctx.key_bias), ctx.positions, aux | report, values, overflow)


def require_some(keep: Any) -> None:
    """Raises `ConfigError` if a batch loses all its tokens."""
    require(
        np.asarray(keep).any(),
        "the delete gate keeps no token of the whole batch; train it at a lower rate, or encode with delete='none'",
    )


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


def spec_of(data: Mapping[str, Any]) -> ModelSpec | EncoderDecoderSpec:
    """The specification of a saved dict, of either kind. Raises `ConfigError` for fields that do not fit."""
    return from_dict(EncoderDecoderSpec if "decoder" in data else ModelSpec, data)


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
