"""The decoder as pure functions of (spec, params, tokens): parameter specs, block, layers, forward pass.

Parameters are a nested dict:

    embed/{table [V, D], up, types}    embed_norm/...    position/<name>/...
    group_<i>/block_<j>/{mixer_norm, mixer, ffn_norm, ffn, ...}
    final_norm/...    pooler/...    head/{transform, down, kernel [D, V], bias [V]}

A group's arrays carry a leading axis of its repeats and are scanned. `unstack` turns them into a list per repeat, the
form in which a decode loop wants them; every function here takes either.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlm import dist
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import FanIn, Normal, ParamSpec, stacked, zeros
from jaxlm.core.types import Context, Dims, Params, PositionEncoding, Specs
from jaxlm.ffn.base import Aux
from jaxlm.model.head import linear_params, pool
from jaxlm.model.positions import plain_positions
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.ops.dense import dense

POLICIES: dict[str, Any] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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


def dims_of(spec: ModelSpec) -> Dims:
    return Dims(width=spec.width, layers=spec.depth)


def position_encodings(spec: ModelSpec) -> dict[str, tuple[PositionEncoding, Dims]]:
    """The model's distinct position encodings by registered name, each with the dims of the layer it first appears in.

    Raises `ConfigError` if two layers use model-wide encodings of one name that differ.
    """
    found: dict[str, tuple[PositionEncoding, Dims]] = {}
    for group in spec.layers:
        for block in group.pattern:
            encoding = getattr(block.mixer, "position", None)
            if encoding is None:
                continue
            name, dims = registry.name_of("position", encoding), block.mixer.dims(dims_of(spec))
            if name in found and encoding.scope == "model" and found[name] != (encoding, dims):
                raise ConfigError(f"position {name!r} lives once in the model but two layers configure it differently")
            found.setdefault(name, (encoding, dims))
    return found


def max_positions(spec: ModelSpec) -> int | None:
    """The longest text the model's position encodings can represent, or None."""
    limits = [
        limit for encoding, _ in position_encodings(spec).values() if (limit := encoding.max_positions()) is not None
    ]
    if not limits:
        return None
    return min(limits) if spec.edit is None else spec.edit.text(min(limits))


def param_specs(spec: ModelSpec) -> Specs:
    """Every parameter of the model. Raises `ConfigError` for widths that do not divide and the like."""
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
    for i, group in enumerate(spec.layers):
        blocks = {f"block_{j}": _block_specs(block, dims) for j, block in enumerate(group.pattern)}
        specs[f"group_{i}"] = stacked(blocks, group.repeats)
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


def _block_specs(block: Block, dims: Dims) -> Specs:
    specs: Specs = {"mixer": block.mixer.params(dims)}
    if block.ffn is not None:
        specs["ffn"] = block.ffn.params(dims)
    for part in list(specs):
        if block.placement != "output" and not (part == "ffn" and block.residual == "parallel_shared"):
            specs[f"{part}_norm"] = block.norm.params(dims.width)
        if block.placement in ("sandwich", "output"):
            specs[f"{part}_out_norm"] = block.norm.params(dims.width)
    return specs


def dropout(x: jax.Array, rate: float, key: jax.Array | None, train: bool) -> jax.Array:
    """Inverted dropout; the identity outside training. Raises `ConfigError` if training has no key."""
    if not train or rate == 0:
        return x
    if key is None:
        raise ConfigError("dropout needs a key in training: pass rngs={'dropout': key}")
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def apply_block(
    block: Block, p: Params, x: jax.Array, ctx: Context, state: Any, *, rate: float, multiplier: float
) -> tuple[jax.Array, Any, Aux]:
    """One block on x [B, L, D]; returns x, the mixer's new state and what the ffn reports."""
    new_state, aux = state, {}

    def run(part: str, inputs: jax.Array) -> jax.Array:
        nonlocal new_state, aux
        if part == "mixer":
            out, new_state = block.mixer(p["mixer"], inputs, ctx, state)
        else:
            out, aux = block.ffn(p["ffn"], inputs, ctx)
        if block.placement in ("sandwich", "output"):
            out = block.norm(p[f"{part}_out_norm"], out)
        key = None if ctx.rng is None else jax.random.fold_in(ctx.rng, part == "ffn")
        out = dropout(out, rate, key, ctx.train)
        return out if multiplier == 1 else out * multiplier

    if block.residual != "serial":
        inputs = block.norm(p["mixer_norm"], x)
        shared = block.residual == "parallel_shared"
        x = x + run("mixer", inputs) + run("ffn", inputs if shared else block.norm(p["ffn_norm"], x))
    else:
        for part in ("mixer", "ffn") if block.ffn is not None else ("mixer",):
            if block.placement == "post":
                x = block.norm(p[f"{part}_norm"], x + run(part, x))
            elif block.placement == "normed":
                x = block.norm(p[f"{part}_norm"], x)
                x = x + run(part, x)
            else:
                x = x + run(part, x if block.placement == "output" else block.norm(p[f"{part}_norm"], x))
    return dist.constrain(x, ("batch", None, None)), new_state, aux


def unstack(params: Params) -> dict[str, Any]:
    """The same parameters with each group a list over its repeats, for loops that run layers unrolled."""
    return {name: _layers(value) if name.startswith("group_") else value for name, value in params.items()}


def _layers(group: Any) -> list[Any]:
    if isinstance(group, (list, tuple)):
        return list(group)
    count = jax.tree.leaves(group)[0].shape[0]
    return [jax.tree.map(lambda a, i=i: a[i], group) for i in range(count)]


def _walk(spec: ModelSpec, params: Params) -> Iterator[tuple[Block, Params]]:
    """Every block of the model in order with its own parameters, per-layer fields set."""
    for i, group in enumerate(spec.layers):
        for r, layer in enumerate(_layers(params[f"group_{i}"])):
            blocks = group.blocks({path: values[r] for path, values in group.per_layer})
            for j, block in enumerate(blocks):
                yield block, layer[f"block_{j}"]


def apply_layers(
    spec: ModelSpec,
    params: Params,
    x: jax.Array,
    ctx: Context,
    state: tuple[Any, ...] | None = None,
    *,
    layers: tuple[int, int] | None = None,
) -> tuple[jax.Array, tuple[Any, ...] | None, Aux]:
    """The blocks of the model, or those from ``layers[0]`` up to ``layers[1]``, on x [B, L, D].

    Stacked groups are scanned when there is no state and no range; otherwise layers run unrolled. ``state`` holds one
    entry per block of the whole model, and is returned in the same form. Last comes what layers report, each number the
    mean over the layers that do.
    """
    run = functools.partial(apply_block, rate=spec.dropout, multiplier=spec.residual_multiplier)
    plain = all(not isinstance(params[f"group_{i}"], (list, tuple)) for i in range(len(spec.layers)))
    if state is None and layers is None and plain:
        x, found = _scan_layers(spec, params, x, ctx, run)
        return x, None, _means(found)
    start, stop = layers or (0, spec.depth)
    require(0 <= start <= stop <= spec.depth, f"layers {layers}: expected a range within 0..{spec.depth}")
    entries = list(state) if state is not None else None
    found: list[Aux] = []
    for n, (block, p) in enumerate(_walk(spec, params)):
        if start <= n < stop:
            entry = None if entries is None else entries[n]
            x, entry, aux = run(block, p, x, _for_layer(ctx, n), entry)
            found.append(aux)
            if entries is not None:
                entries[n] = entry
    return x, None if entries is None else tuple(entries), _means(found)


def _means(found: list[Aux]) -> Aux:
    """The mean of each name over all layers that report it; an entry is of one layer, or stacked of several."""
    names = sorted({name for aux in found for name in aux})
    return {name: jnp.concatenate([jnp.ravel(aux[name]) for aux in found if name in aux]).mean() for name in names}


def _for_layer(ctx: Context, index: int | jax.Array) -> Context:
    return ctx if ctx.rng is None else dataclasses.replace(ctx, rng=jax.random.fold_in(ctx.rng, index))


def _scan_layers(
    spec: ModelSpec, params: Params, x: jax.Array, ctx: Context, run: Callable[..., Any]
) -> tuple[jax.Array, list[Aux]]:
    first, found = 0, []
    for i, group in enumerate(spec.layers):
        numbers = {path: jnp.asarray(values) for path, values in group.per_layer}

        def repeat(x: jax.Array, layer: Any, group=group, first=first) -> tuple[jax.Array, list[Aux]]:
            (p, values, r), reports = layer, []
            for j, block in enumerate(group.blocks(values)):
                layer_ctx = _for_layer(ctx, first + r * len(group.pattern) + j)
                x, _, aux = run(block, p[f"block_{j}"], x, layer_ctx, None)
                reports.append(aux)
            return x, reports

        if spec.remat != "none":
            repeat = jax.checkpoint(repeat, prevent_cse=False, policy=POLICIES[spec.remat])
        x, reports = jax.lax.scan(repeat, x, (params[f"group_{i}"], numbers, jnp.arange(group.repeats)))
        first += group.repeats * len(group.pattern)
        found += reports
    return x, found


def unembed(spec: ModelSpec, params: Params, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of hidden states [..., D]."""
    if spec.head_transform is not None:
        hidden = spec.head_transform(params["head"]["transform"], hidden)
    if spec.embed_width:
        hidden = dense(hidden, params["head"]["down"])
    kernel = params["embed"]["table"].T if spec.tied_head else params["head"]["kernel"]
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if spec.head_bias:
        logits = logits + params["head"]["bias"]
    if spec.logit_multiplier != 1:
        logits = logits * spec.logit_multiplier
    if spec.logit_soft_cap:
        logits = spec.logit_soft_cap * jnp.tanh(logits / spec.logit_soft_cap)
    return logits


def init_state(spec: ModelSpec, batch: int, max_length: int, cache: Any) -> dict[str, Any]:
    """An empty state: one entry per block, each row's next position and last segment, and, where the model edits its
    input, how many tokens of the text it has had.

    Raises `ConfigError` if ``max_length`` is beyond what a position encoding can represent.
    """
    _check_length(spec, max_length)
    dims, dtype = dims_of(spec), jnp.dtype(spec.dtype)
    blocks = [block for group in spec.layers for _ in range(group.repeats) for block in group.pattern]
    sizes = rooms(spec, max_length)
    entries = (b.mixer.init_state(dims, batch, n, dtype, cache) for b, n in zip(blocks, sizes, strict=True))
    none = jnp.zeros((batch,), jnp.int32)
    return {"layers": tuple(entries), "position": none, "segment": none, **({"text": none} if spec.edit else {})}


def rooms(spec: ModelSpec, length: int) -> tuple[int, ...]:
    """The capacity that each block's state needs for ``length`` tokens of text, padding included."""
    mixers = [block.mixer for group in spec.layers for _ in range(group.repeats) for block in group.pattern]
    if spec.edit is None:
        return (length,) * len(mixers)
    # What an edit may put between tokens is padding, which not all mixers keep.
    most, least = spec.edit.slots(length), spec.edit.length(length)
    return tuple(most if getattr(mixer, "padding_takes_room", True) else least for mixer in mixers)


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
    train: bool = False,
    rng: jax.Array | None = None,
    length: jax.Array | int | None = None,
    ordered: bool | None = None,
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
      train: dropout on; ``rng`` then feeds it.
      length: what dynamic position scalings scale for, in positions; None for the current length.
      ordered: a promise that explicit positions rise along each segment (then the future is skipped, not masked).
      logits: whether to compute them; `unembed` makes them from ``hidden`` in pieces.

    Raises:
      ConfigError: neither or both of tokens and inputs_embeds, the latter or token types where the model edits its
        tokens, token types where it has none, or a length no position encoding can represent.
    """
    if (tokens is None) == (inputs_embeds is None):
        raise ConfigError("give either tokens or inputs_embeds")
    if token_types is not None:
        require(spec.token_types, "token_types: the model has none (ModelSpec.token_types is 0)")
        require(spec.edit is None, "a model with a sequence edit takes no token_types")
    inputs = tokens if tokens is not None else inputs_embeds
    assert inputs is not None
    batch, size = inputs.shape[:2]
    slots = positions is None and segment_ids is None and state is None
    if ordered is None:
        ordered = positions is None
    if positions is not None:
        positions = positions[None] if positions.ndim == 1 else positions
        if not isinstance(positions, Tracer):
            _check_length(spec, int(np.asarray(positions).max()) + 1)  # numpy: within a jit, jnp would trace it
    elif state is None:
        _check_length(spec, size)
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
    if inputs_embeds is None:
        # Whole rows per device: looked up in pieces of D, the tokens of all devices would have to meet.
        table = dist.constrain(params["embed"]["table"], ("vocab", None))
        x = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(dtype)
        x = x * spec.embed_multiplier if spec.embed_multiplier != 1 else x
        x = dense(x, params["embed"]["up"]) if spec.embed_width else x
    else:
        x = inputs_embeds.astype(dtype)
    if spec.token_types:
        types = jnp.zeros((1, 1), jnp.int32) if token_types is None else token_types
        added = params["embed"]["types"].at[types].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        x = x + added.astype(dtype)
    shared = {}
    for name, (encoding, _) in position_encodings(spec).items():
        if encoding.scope == "model":
            shared[name] = params.get("position", {}).get(name, {})
            added = encoding.embed(shared[name], positions, spec.width)
            x = x if added is None else x + added.astype(dtype)
    if spec.embed_norm is not None:
        x = spec.embed_norm(params["embed_norm"], x)
    x = dropout(x, spec.dropout, rng, train)
    x = dist.constrain(x, ("batch", None, None))
    ctx = Context(
        positions=positions,
        segment_ids=segment_ids,
        ordered=ordered,
        slots=slots,
        train=train,
        rng=rng,
        length=None if length is None else jnp.asarray(length, jnp.int32),
        shared=shared,
    )
    x, entries, aux = apply_layers(spec, params, x, ctx, None if state is None else state["layers"])
    if spec.norm is not None:
        x = spec.norm(params["final_norm"], x)
    if state is not None:
        state = {"layers": entries, **_advance(state, positions, segment_ids, batch, size)}
    if spec.edit is not None and edited is not None:
        x = spec.edit.strip(x, edited.places)
        state = None if state is None else {**state, "text": edited.count}
    return Output(
        hidden=x,
        logits=unembed(spec, params, x) if logits else None,
        state=state,
        aux=aux,
        pooled=pool(params["pooler"], x) if spec.pooler else None,
    )


def draw_positions(
    spec: ModelSpec, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None
) -> jax.Array | None:
    """The positions [B, L] that the model's random encoding draws in place of the plain ones; None if it has none.

    Row b draws by its id ``rows[b]``, by default b.

    Raises `ConfigError` if known positions are beyond what the model's encodings can represent.
    """
    if not isinstance(positions, Tracer):
        _check_length(spec, int(np.asarray(positions).max()) + 1)
    for encoding, _ in position_encodings(spec).values():
        drawn = encoding.draw(key, positions, rows)
        if drawn is not positions:
            return drawn
    return None


@dataclasses.dataclass(frozen=True)
class Decoder:
    """`forward` and `unembed` of one spec: the model as objectives and decoders take it."""

    spec: ModelSpec

    def __call__(self, params: Params, tokens: jax.Array | None = None, **options: Any) -> Output:
        return forward(self.spec, params, tokens, **options)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        return unembed(self.spec, params, hidden)

    def draw(self, key: jax.Array, positions: jax.Array) -> jax.Array | None:
        return draw_positions(self.spec, key, positions)


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
