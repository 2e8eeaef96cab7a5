"""The decoder as pure functions of (spec, params, tokens): parameter specs, state, forward pass (blocks: `layers`).

Parameters are a nested dict:

    embed/{table [V, D], up, types}    embed_norm/...    position/<name>/...
    group_<i>/block_<j>/{mixer_norm, mixer, ffn_norm, ffn, ...}    shared/<name>/{mixer, ...}
    final_norm/...    pooler/...    head/{transform, down, kernel [D, V], bias [V]}

A group's arrays carry a leading axis of its repeats and are scanned. `unstack` turns them into a list per repeat, the
form in which a decode loop wants them; every function here takes either. With a tied head there may be a table for each
row of the batch, [B, V, D] (`jaxlm.ops.drawn_table`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlm import dist
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import FanIn, Normal, ParamSpec, divide, flatten, map_specs, stacked, zeros
from jaxlm.core.types import Context, Dims, Memory, Params, PositionEncoding, Specs
from jaxlm.ffn.base import Aux
from jaxlm.model.head import linear_params, pool
from jaxlm.model.layers import apply_block as apply_block
from jaxlm.model.layers import apply_layers, block_specs, dropout
from jaxlm.model.layers import unstack as unstack
from jaxlm.model.positions import plain_positions
from jaxlm.model.spec import ModelSpec
from jaxlm.ops.dense import dense

READERS = 2**31 - 1  # folded into the key of encodings that read tokens; layers fold in their index


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    Attributes:
      hidden: [B, L, D], after the final norm, in the model's dtype.
      logits: float32 [B, L, V], or None if not asked for.
      state: the state after these tokens, or None if none was given.
      aux: what the layers report beside their outputs, float32 scalars by name (`jaxlm.ffn.base`).
      pooled: [B, D] of each row's first token, in the model's dtype, or None if the model has no pooler.
    """

    hidden: jax.Array
    logits: jax.Array | None = None
    state: Any = None
    aux: Aux = dataclasses.field(default_factory=dict)
    pooled: jax.Array | None = None


def _patched() -> Any:
    """The module of models with a patcher, which is made of this one."""
    from jaxlm.model import patched

    return patched


def dims_of(spec: ModelSpec) -> Dims:
    return Dims(width=spec.width, layers=spec.depth)


def position_encodings(spec: ModelSpec) -> dict[str, tuple[PositionEncoding, Dims]]:
    """The model's distinct position encodings by registered name, each with the dims of the layer it first appears in.

    Raises `ConfigError` if two layers use model-wide encodings of one name that differ.
    """
    found: dict[str, tuple[PositionEncoding, Dims]] = {}
    for group in spec.layers:
        for mixer, width in (one for block in group.pattern for one in _placed(block.mixer, dims_of(spec))):
            encoding = getattr(mixer, "position", None)
            if encoding is None:
                continue
            name, dims = registry.name_of("position", encoding), mixer.dims(width)
            if name in found and encoding.scope == "model" and found[name] != (encoding, dims):
                raise ConfigError(f"position {name!r} lives once in the model but two layers configure it differently")
            found.setdefault(name, (encoding, dims))
    return found


def _placed(mixer: Any, dims: Dims) -> Iterator[tuple[Any, Dims]]:
    """The mixers that a mixer is made of, each with what it knows of the model."""
    if not hasattr(mixer, "inner"):
        yield mixer, dims
        return
    for part, own in zip(mixer.inner, mixer.widths(dims), strict=True):
        yield from _placed(part, own)


def max_positions(spec: ModelSpec) -> int | None:
    """The longest text the model's position encodings can represent, or None."""
    if spec.patcher is not None:
        return _patched().max_positions(spec)
    limits = [
        limit for encoding, _ in position_encodings(spec).values() if (limit := encoding.max_positions()) is not None
    ]
    if not limits:
        return None
    return min(limits) if spec.edit is None else spec.edit.text(min(limits))


def param_specs(spec: ModelSpec) -> Specs:
    """Every parameter of the model. Raises `ConfigError` for widths that do not divide and the like."""
    if spec.patcher is not None:
        return _patched().param_specs(spec)
    dims = dims_of(spec)
    inner = spec.embed_width or spec.width
    specs: Specs = {
        "embed": {"table": ParamSpec((spec.vocab_size, inner), ("vocab", "embed"), Normal(inner**-0.5), (1,))}
    }
    if spec.embed_width:
        specs["embed"]["up"] = ParamSpec((inner, spec.width), (None, "embed"))
    if spec.token_types:
        types = ParamSpec((spec.token_types, spec.width), (None, "embed"), Normal(spec.width**-0.5), (1,))
        specs["embed"]["types"] = types
    if spec.embed_norm is not None:
        specs["embed_norm"] = spec.embed_norm.params(spec.width)
    shared = {name: e.params(d) for name, (e, d) in position_encodings(spec).items() if e.scope == "model"}
    if shared := {name: s for name, s in shared.items() if s}:
        specs["position"] = shared
    common: Specs = {}
    for i, group in enumerate(spec.layers):
        blocks: Specs = {}
        for j, block in enumerate(group.pattern):
            blocks[f"block_{j}"], once = divide(block_specs(block, dims))
            _share(common, once, group.repeats)
        if blocks := {name: own for name, own in blocks.items() if own}:
            specs[f"group_{i}"] = stacked(blocks, group.repeats)
    if common:
        specs["shared"] = common
    if spec.norm is not None:
        specs["final_norm"] = spec.norm.params(spec.width)
    if spec.pooler:
        specs["pooler"] = linear_params(spec.width)
    head: Specs = {}
    if spec.head_transform is not None:
        head["transform"] = spec.head_transform.params(spec.width)
    if spec.embed_width:
        head["down"] = ParamSpec((spec.width, inner), ("embed", None))
    if not spec.tied_head:
        head["kernel"] = ParamSpec((inner, spec.vocab_size), ("embed", "vocab"), FanIn())
    if spec.head_bias:
        head["bias"] = ParamSpec((spec.vocab_size,), ("vocab",), zeros, decay=False)
    return {**specs, "head": head} if head else specs


def _share(common: Specs, once: Specs, uses: int) -> None:
    """Adds to ``common`` what so many more layers share. Raises `ConfigError` if it is not what those before share."""
    for name, tree in once.items():
        known, new = (dict(flatten(one)) for one in (common.get(name, tree), tree))
        odd = [p for p in {**known, **new} if p not in known or p not in new or known[p].shape != new[p].shape]
        require(not odd, f"layers that share {name!r} differ in it: {', '.join(odd[:1])}")
        before = known if name in common else {}
        common[name] = map_specs(
            lambda p, s, before=before: dataclasses.replace(s, uses=uses + (before[p].uses if before else 0)), tree
        )


def unembed(spec: ModelSpec, params: Params, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of hidden states [..., D]."""
    if spec.head_transform is not None:
        hidden = spec.head_transform(params["head"]["transform"], hidden)
    if spec.embed_width:
        hidden = dense(hidden, params["head"]["down"])
    kernel = jnp.swapaxes(params["embed"]["table"], -1, -2) if spec.tied_head else params["head"]["kernel"]
    product = jnp.matmul if kernel.ndim == 2 else functools.partial(jnp.einsum, "b...d,bdv->b...v")
    logits = product(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if spec.head_bias:
        logits = logits + params["head"]["bias"]
    if spec.logit_multiplier != 1:
        logits = logits * spec.logit_multiplier
    if spec.logit_soft_cap:
        logits = spec.logit_soft_cap * jnp.tanh(logits / spec.logit_soft_cap)
    return logits


def init_state(spec: ModelSpec, batch: int, max_length: int, cache: Any, source_length: int = 0) -> dict[str, Any]:
    """An empty state: one entry per block, each row's next position and last segment; where the model edits its input,
    how many tokens of the text it has had; and what position encodings that read tokens remember of them.

    ``source_length`` is that of the memory which the model is to read. Raises `ConfigError` if ``max_length`` is beyond
    what a position encoding can represent, and where the model reads a memory and there is to be none.
    """
    if spec.patcher is not None:
        return _patched().init_state(spec, batch, max_length, cache)
    _check_length(spec, max_length)
    dims, dtype = dataclasses.replace(dims_of(spec), source=source_length), jnp.dtype(spec.dtype)
    blocks = [block for group in spec.layers for _ in range(group.repeats) for block in group.pattern]
    sizes = rooms(spec, max_length)
    entries = (b.mixer.init_state(dims, batch, n, dtype, cache) for b, n in zip(blocks, sizes, strict=True))
    none = lambda: jnp.zeros((batch,), jnp.int32)  # an array each, so that a state may be donated
    readers = {name: e.start(batch) for name, (e, _) in position_encodings(spec).items() if e.reads_tokens}
    state: dict[str, Any] = {"layers": tuple(entries), "position": none(), "segment": none()}
    return state | ({"text": none()} if spec.edit else {}) | ({"encodings": readers} if readers else {})


def rooms(spec: ModelSpec, length: int) -> tuple[int, ...]:
    """The capacity that each block's state needs for ``length`` tokens of text, padding included."""
    mixers = [block.mixer for group in spec.layers for _ in range(group.repeats) for block in group.pattern]
    if spec.edit is None:
        return (length,) * len(mixers)
    # What an edit may put between tokens is padding, which not all mixers keep.
    most, least = spec.edit.slots(length), spec.edit.length(length)
    return tuple(most if getattr(mixer, "padding_takes_room", True) else least for mixer in mixers)


def _check_state(spec: ModelSpec, state: Any, batch: int) -> None:
    layers, rows = len(state["layers"]), len(state["position"])
    require(
        layers == spec.depth and rows == batch,
        f"state: a state of another model or batch: of {layers} layers and {rows} rows; "
        f"the model has {spec.depth} layers, the tokens {batch} rows",
    )


def _check_length(spec: ModelSpec, length: int) -> None:
    limit = max_positions(spec)
    if limit is not None and length > limit:
        raise ConfigError(
            f"length {length} is beyond the {limit} positions that the model's position encoding can represent"
        )


def forward(
    spec: ModelSpec,
    params: Params,
    tokens: jax.Array | None = None,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    state: Any = None,
    inputs_embeds: jax.Array | None = None,
    token_types: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    train: bool = False,
    rng: jax.Array | None = None,
    length: jax.Array | int | None = None,
    ordered: bool | None = None,
    memory: Memory | None = None,
    logits: bool = True,
) -> Output:
    """The whole model. Tokens that it adds to its input by itself (``spec.edit``) show nowhere in what it returns.

    Args:
      spec, params: the model; ``params`` stacked or unstacked.
      tokens: int32 [B, L]; ids outside the vocabulary read NaN.
      positions: int32 [L] or [B, L]; None counts the real tokens of each segment from 0, continuing the state's count.
      segment_ids: int32 [B, L], 0 for padding; None for one document per row.
      state: of `init_state`; the tokens then continue what it holds, whatever their number.
      inputs_embeds: [B, L, D] in place of embedded tokens (already scaled).
      token_types: int32 [B, L] below ``spec.token_types``; None for type 0 everywhere.
      position_ids: int32 [B, L], what encodings that add to the embeddings look up in place of positions, in any order
        and with repeats (position coupling): order, and so the mask, stays with ``positions``.
      train: dropout on; ``rng`` then feeds it.
      length: what dynamic position scalings scale for, in positions; None for the current length.
      ordered: a promise that explicit positions rise along each segment (then the future is skipped, not masked).
      memory: what an encoder gave, for models that read one; with a state, needed in the first call alone.
      logits: whether to compute them; `unembed` makes them from ``hidden`` in pieces.

    Raises:
      ConfigError: neither or both of tokens and inputs_embeds, the latter or token types where the model edits its
        tokens, token types where it has none, position ids where no encoding adds to the embeddings, a length no
        position encoding can represent, or no memory where the model reads one.
    """
    given: dict[str, Any] = {
        "positions": positions,
        "segment_ids": segment_ids,
        "state": state,
        "inputs_embeds": inputs_embeds,
        "token_types": token_types,
        "position_ids": position_ids,
        "train": train,
        "rng": rng,
        "length": length,
        "ordered": ordered,
    }
    if spec.patcher is not None:
        return _patched().forward(spec, params, tokens, **given, memory=memory, logits=logits)
    x, ctx, rest = begin(spec, params, tokens, **given)
    ctx = ctx if memory is None else dataclasses.replace(ctx, memory=memory)
    x, entries, aux = apply_layers(spec, params, x, ctx, None if state is None else state["layers"])
    if spec.norm is not None:
        x = spec.norm(params["final_norm"], x)
    if state is not None:
        state = {"layers": entries, **_advance(state, ctx.positions, ctx.segment_ids, x.shape[0], x.shape[1])}
        state |= {"encodings": rest.carried} if rest.carried else {}
    if spec.edit is not None and rest.edited is not None:
        x = spec.edit.strip(x, rest.edited.places)
        state = None if state is None else {**state, "text": rest.edited.count}
    return Output(
        hidden=x,
        logits=unembed(spec, params, x) if logits else None,
        state=state,
        aux=aux,
        pooled=pool(params["pooler"], x) if spec.pooler else None,
    )


def _look_up(spec: ModelSpec, table: jax.Array, tokens: jax.Array) -> jax.Array:
    """The rows of ``tokens`` [B, L], NaN for ids outside the vocabulary."""

    def rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
        return jnp.asarray(table).at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    if table.ndim == 2:
        # Whole rows per device: looked up in pieces of D, the tokens of all devices would have to meet.
        return rows(dist.constrain(table, ("vocab", None)), tokens)
    require(spec.tied_head, "a table for each row of the batch: the model's head is not tied to it")
    require(len(table) == len(tokens), f"{len(table)} tables for {len(tokens)} rows of tokens")
    return jax.vmap(rows)(dist.constrain(table, ("batch", None, None)), tokens)


class Rest(NamedTuple):
    """What the end of a forward pass needs of its beginning.

    Attributes:
      edited: what ``spec.edit`` made of the tokens, or None.
      carried: what encodings that read tokens carry on, by name.
    """

    edited: Any
    carried: dict[str, Any]


def begin(
    spec: ModelSpec,
    params: Params,
    tokens: jax.Array | None,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    state: Any = None,
    inputs_embeds: jax.Array | None = None,
    token_types: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    train: bool = False,
    rng: jax.Array | None = None,
    length: jax.Array | int | None = None,
    ordered: bool | None = None,
) -> tuple[jax.Array, Context, Rest]:
    """What the first layer is given: x [B, L, D] and its context; arguments and errors are those of `forward`."""
    if (tokens is None) == (inputs_embeds is None):
        raise ConfigError("give either tokens or inputs_embeds")
    if token_types is not None:
        require(spec.token_types, "token_types: the model has none (ModelSpec.token_types is 0)")
        require(spec.edit is None, "a model with a sequence edit takes no token_types")
    require(spec.edit is None or position_ids is None, "a model with a sequence edit takes no position_ids")
    inputs = tokens if tokens is not None else inputs_embeds
    assert inputs is not None
    batch, size = inputs.shape[:2]
    if state is not None:
        _check_state(spec, state, batch)
    slots = positions is None and segment_ids is None and state is None
    if ordered is None:
        ordered = positions is None
    positions = positions[None] if positions is not None and positions.ndim == 1 else positions
    known = positions if position_ids is None else position_ids
    if known is None and state is None:
        _check_length(spec, size)
    elif known is not None and not isinstance(known, Tracer):
        _check_length(spec, int(np.asarray(known).max()) + 1)  # numpy: within a jit, jnp would trace it
    edited = None
    if spec.edit is not None:
        if tokens is None:
            raise ConfigError("a model with a sequence edit takes tokens, not inputs_embeds")
        count = None if state is None else state["text"]
        edited = spec.edit.insert(tokens, positions, segment_ids, count, spec.vocab_size)
        tokens, positions, segment_ids, size = (
            edited.tokens,
            edited.positions,
            edited.segment_ids,
            edited.tokens.shape[1],
        )
    if positions is None:
        positions = plain_positions(batch, size, segment_ids, state)
    dtype = jnp.dtype(spec.dtype)
    if tokens is not None:
        x = _look_up(spec, params["embed"]["table"], tokens).astype(dtype)
        x = x * spec.embed_multiplier if spec.embed_multiplier != 1 else x
        x = dense(x, params["embed"]["up"]) if spec.embed_width else x
    else:
        x = inputs.astype(dtype)
    if spec.token_types:
        types = jnp.zeros((1, 1), jnp.int32) if token_types is None else token_types
        kinds = jnp.asarray(params["embed"]["types"])
        added = kinds.at[types].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        x = x + added.astype(dtype)
    shared, carried, looked_up = {}, {}, False
    for name, (encoding, dims) in position_encodings(spec).items():
        if encoding.scope == "model":
            shared[name] = encoding.prepare(params.get("position", {}).get(name, {}), dims)
            added = encoding.embed(shared[name], positions if position_ids is None else position_ids, spec.width)
            looked_up |= added is not None
            x = x if added is None else x + added.astype(dtype)
        if encoding.reads_tokens:
            if tokens is None or edited is not None:
                raise ConfigError(f"position {name!r} reads the tokens, and takes neither inputs_embeds nor an edit")
            seen = None if state is None else state["encodings"][name]
            key = jax.random.fold_in(rng, READERS) if train and rng is not None else None
            added, carried[name] = encoding.embed_tokens(
                shared[name], tokens, segment_ids, seen, spec.width, train, key
            )
            x = x + added.astype(dtype)
    require(looked_up or position_ids is None, "position_ids: no position encoding of the model adds to the embeddings")
    if spec.embed_norm is not None:
        x = spec.embed_norm(params["embed_norm"], x)
    x = dropout(x, spec.dropout, rng, train)
    x = dist.constrain(x, ("batch", "length", None))
    ctx = Context(
        positions=positions,
        segment_ids=segment_ids,
        ordered=ordered,
        slots=slots,
        train=train,
        rng=rng,
        length=None if length is None else jnp.asarray(length, jnp.int32),
        shared=shared,
        embedded=x,
    )
    return x, ctx, Rest(edited, carried)


def prepare_positions(spec: ModelSpec, shared: Params) -> dict[str, Any]:
    """``params["position"]`` as the encodings make it of their parameters once in a forward pass (a table of CLEX), for
    loops of many passes; `forward` takes either form."""
    encodings = position_encodings(spec)
    return {name: encodings[name][0].prepare(p, encodings[name][1]) for name, p in shared.items()}


def draw_positions(
    spec: ModelSpec, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None, *, train: bool = False
) -> jax.Array | None:
    """The positions [B, L] that the model's random encoding draws in place of the plain ones; None if it has none.

    Row b draws by its id ``rows[b]``, by default b. ``train`` asks for positions to train on.

    Raises `ConfigError` if known positions are beyond what the model's encodings can represent.
    """
    if not isinstance(positions, Tracer):
        _check_length(spec, int(np.asarray(positions).max()) + 1)
    for encoding, _ in position_encodings(spec).values():
        drawn = (encoding.draw_training if train else encoding.draw)(key, positions, rows)
        if drawn is not positions:
            return drawn
    return None


class Prompt(NamedTuple):
    """What generation begins with.

    Attributes:
      tokens: int32 [B, L], padded on the right, and ``lengths`` int32 [B], what is real of each row.
      params: of the stack that writes.
      memory: what that stack reads, or None.
    """

    tokens: Any
    lengths: Any
    params: Params
    memory: Memory | None = None


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The pure functions of one spec: the model as objectives, trainers and decoders take it.

    `jaxlm.model.encoder_decoder.Transducer` is another of the same kind. `stacks` are the models it is made of by
    name, `reader` is the one that a prompt is for, `writer` the one that new tokens come of.
    """

    spec: ModelSpec

    @property
    def stacks(self) -> dict[str, ModelSpec]:
        return {"": self.spec}

    @property
    def reader(self) -> ModelSpec:
        return self.spec

    @property
    def writer(self) -> ModelSpec:
        return self.spec

    def param_specs(self) -> Specs:
        return param_specs(self.spec)

    def prompt(self, params: Params, tokens: Any, lengths: Any) -> Prompt:
        """What generation begins with after a prompt [B, L] that is padded on the right."""
        return Prompt(tokens, lengths, params)

    def __call__(self, params: Params, tokens: jax.Array | None = None, **options: Any) -> Output:
        return forward(self.spec, params, tokens, **options)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        return unembed(self.spec, params, hidden)

    def draw(self, key: jax.Array, positions: jax.Array, *, train: bool = False) -> jax.Array | None:
        return draw_positions(self.spec, key, positions, train=train)


def _advance(
    state: Any, positions: jax.Array, segment_ids: jax.Array | None, batch: int, size: int
) -> dict[str, jax.Array]:
    """Each row's next position and last segment after these tokens, padding left out."""
    positions = jnp.broadcast_to(positions, (batch, size))
    segments = jnp.ones((batch, size), jnp.int32) if segment_ids is None else segment_ids
    last = jnp.where(segments != 0, jnp.arange(size), -1).max(1)
    rows = jnp.arange(batch)
    return {
        "position": jnp.where(last >= 0, positions[rows, last] + 1, state["position"]),
        "segment": jnp.where(last >= 0, segments[rows, last], state["segment"]),
    }
