"""The encoder of an encoder-decoder on a source, and what its delete gate takes away there."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.types import Context, Memory, Params
from jaxlm.model import decoder
from jaxlm.model.delete_gate import compact
from jaxlm.model.encoder_decoder_spec import EncoderDecoderSpec
from jaxlm.model.inputs import Inputs, begin
from jaxlm.model.layers import apply_layers
from jaxlm.model.positions import plain_positions

DELETIONS = ("none", "soft", "hard")
_NOISE = 0x6E6F6973  # folded into the key that draws a gate's noise
GONE = -1e4  # added to the logits of what is out of reach


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
    key = jax.random.fold_in(ctx.rng, _NOISE) if ctx.train and ctx.rng is not None else None
    values = gate(params["gate"], x, real, key)
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
