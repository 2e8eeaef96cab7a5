"""The beginning of a forward pass: what the first layer is given."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Context, Params
from jaxlm.model.declaration import check_length, position_encodings
from jaxlm.model.layers import dropout
from jaxlm.model.positions import plain_positions
from jaxlm.model.spec import ModelSpec
from jaxlm.model.state import check_state
from jaxlm.ops.dense import dense

READERS = 2**31 - 1  # folded into the key of encodings that read tokens; layers fold in their index


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a forward pass may be told beside its tokens [B, L].

    Attributes:
      positions: int32 [L] or [B, L]; None counts the real tokens of each segment from 0, continuing the state's count.
      segment_ids: int32 [B, L], 0 for padding; None for one document per row.
      state: of `jaxlm.model.state.init_state`; the tokens then continue what it holds, whatever their number.
      inputs_embeds: [B, L, D] in place of embedded tokens (already scaled).
      token_types: int32 [B, L] below ``spec.token_types``; None for type 0 everywhere.
      position_ids: int32 [B, L], what encodings that add to the embeddings look up in place of positions, in any order
        and with repeats (position coupling): order, and so the mask, stays with ``positions``.
      train: dropout on; ``rng`` then feeds it.
      length: what dynamic position scalings scale for, in positions; None for the current length.
      ordered: a promise that explicit positions rise along each segment (then the future is skipped, not masked).
    """

    positions: jax.Array | None = None
    segment_ids: jax.Array | None = None
    state: Any = None
    inputs_embeds: jax.Array | None = None
    token_types: jax.Array | None = None
    position_ids: jax.Array | None = None
    train: bool = False
    rng: jax.Array | None = None
    length: jax.Array | int | None = None
    ordered: bool | None = None


class Rest(NamedTuple):
    """What the end of a forward pass needs of its beginning.

    Attributes:
      edited: what ``spec.edit`` made of the tokens, or None.
      carried: what encodings that read tokens carry on, by name.
    """

    edited: Any
    carried: dict[str, Any]


def begin(
    spec: ModelSpec, params: Params, tokens: jax.Array | None, given: Inputs = Inputs()
) -> tuple[jax.Array, Context, Rest]:
    """What the first layer is given: x [B, L, D] and its context; errors are those of `jaxlm.model.decoder.forward`."""
    batch, size = _check(spec, tokens, given)
    positions, segment_ids, edited = given.positions, given.segment_ids, None
    positions = positions[None] if positions is not None and positions.ndim == 1 else positions
    if spec.edit is not None and tokens is not None:
        count = None if given.state is None else given.state["text"]
        edited = spec.edit.insert(tokens, positions, segment_ids, count, spec.vocab_size)
        tokens, positions, segment_ids = edited.tokens, edited.positions, edited.segment_ids
        size = edited.tokens.shape[1]
    if positions is None:
        positions = plain_positions(batch, size, segment_ids, given.state)
    x = _embed(spec, params, tokens, given)
    shared, carried, looked_up = {}, {}, False
    for name, (encoding, dims) in position_encodings(spec).items():
        if encoding.scope == "model":
            shared[name] = encoding.prepare(params.get("position", {}).get(name, {}), dims)
            at = positions if given.position_ids is None else given.position_ids
            added = encoding.embed(shared[name], at, spec.width)
            looked_up |= added is not None
            x = x if added is None else x + added.astype(x.dtype)
        if encoding.reads_tokens:
            if tokens is None or edited is not None:
                raise ConfigError(f"position {name!r} reads the tokens, and takes neither inputs_embeds nor an edit")
            seen = None if given.state is None else given.state["encodings"][name]
            key = jax.random.fold_in(given.rng, READERS) if given.train and given.rng is not None else None
            added, carried[name] = encoding.embed_tokens(
                shared[name], tokens, segment_ids, seen, spec.width, given.train, key
            )
            x = x + added.astype(x.dtype)
    require(
        looked_up or given.position_ids is None,
        "position_ids: no position encoding of the model adds to the embeddings",
    )
    if spec.embed_norm is not None:
        x = spec.embed_norm(params["embed_norm"], x)
    x = dropout(x, spec.dropout, given.rng, given.train)
    x = dist.constrain(x, ("batch", "length", None))
    ctx = Context(
        positions=positions,
        segment_ids=segment_ids,
        ordered=given.positions is None if given.ordered is None else given.ordered,
        slots=given.positions is None and given.segment_ids is None and given.state is None,
        train=given.train,
        rng=given.rng,
        length=None if given.length is None else jnp.asarray(given.length, jnp.int32),
        shared=shared,
        embedded=x,
    )
    return x, ctx, Rest(edited, carried)


def _check(spec: ModelSpec, tokens: jax.Array | None, given: Inputs) -> tuple[int, int]:
    """B and L of the input; raises `ConfigError` for what the model does not take."""
    inputs = given.inputs_embeds if tokens is None else tokens
    if inputs is None or (tokens is not None and given.inputs_embeds is not None):
        raise ConfigError("give either tokens or inputs_embeds")
    require(
        given.token_types is None or spec.token_types,
        "token_types: the model has none (ModelSpec.token_types is 0)",
    )
    if spec.edit is not None:
        for name in ("token_types", "position_ids"):
            require(getattr(given, name) is None, f"a model with a sequence edit takes no {name}")
        require(tokens is not None, "a model with a sequence edit takes tokens, not inputs_embeds")
    batch, size = inputs.shape[:2]
    if given.state is not None:
        check_state(spec, given.state, batch)
    known = given.positions if given.position_ids is None else given.position_ids
    if known is None and given.state is None:
        check_length(spec, size)
    elif known is not None and not isinstance(known, Tracer):
        check_length(spec, int(np.asarray(known).max()) + 1)  # numpy: within a jit, jnp would trace it
    return batch, size


def _embed(spec: ModelSpec, params: Params, tokens: jax.Array | None, given: Inputs) -> jax.Array:
    """Embedded tokens, or what was given in their place, and their types: [B, L, D]."""
    dtype = jnp.dtype(spec.dtype)
    if tokens is None:
        assert given.inputs_embeds is not None
        x = given.inputs_embeds.astype(dtype)
    else:
        x = look_up(spec, params["embed"]["table"], tokens).astype(dtype)
        x = x * spec.embed_multiplier if spec.embed_multiplier != 1 else x
        x = dense(x, params["embed"]["up"]) if spec.embed_width else x
    if spec.token_types:
        types = jnp.zeros((1, 1), jnp.int32) if given.token_types is None else given.token_types
        kinds = jnp.asarray(params["embed"]["types"])
        added = kinds.at[types].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        x = x + added.astype(dtype)
    return x


def look_up(spec: ModelSpec, table: jax.Array, tokens: jax.Array) -> jax.Array:
    """The rows of ``tokens`` [B, L], NaN for ids outside the vocabulary."""

    def rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
        return jnp.asarray(table).at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    if table.ndim == 2:
        # Whole rows per device: looked up in pieces of D, the tokens of all devices would have to meet.
        return rows(dist.constrain(table, ("vocab", None)), tokens)
    require(spec.tied_head, "a table for each row of the batch: the model's head is not tied to it")
    require(len(table) == len(tokens), f"{len(table)} tables for {len(tokens)} rows of tokens")
    return jax.vmap(rows)(dist.constrain(table, ("batch", None, None)), tokens)
