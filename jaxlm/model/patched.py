"""A model with a patcher as pure functions of (spec, params, tokens): `decoder`'s, where ``spec.patcher`` is set.

Parameters are those of the model's layers, which see patches, and beside them

    embed/table [V, d]  patcher/{<stack>/{group_<i>/..., final_norm, ...}, <model>/{embed, group_<i>/..., ...},
    <its own arrays>}  head/{kernel [d, V], bias}

with d the patcher's width. The state holds a state for each streaming stack, one for the model's layers, whose caches
have room for patches and not for bytes, and what the patcher must know of the bytes before (`PatchState`). At single
steps the model's layers run only if some row has an event.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlm.cache.full import FullCache
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import ParamSpec, flatten, map_specs, zeros
from jaxlm.core.types import Params, Specs
from jaxlm.ffn.base import AUXILIARY_LOSS, Aux
from jaxlm.mixer.composite import States
from jaxlm.mixer.recurrent import RecurrentState
from jaxlm.model import decoder
from jaxlm.model.inputs import look_up
from jaxlm.model.patcher.base import Answer, Patcher, Row, Slots, at
from jaxlm.model.positions import plain_positions
from jaxlm.model.spec import ModelSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PatchState:
    """What a row's patches go on from.

    Attributes:
      stacks: the state of each streaming stack, and ``"model"`` that of the model's layers.
      own: of the patcher itself.
      history: int32 [B, K], the last bytes.
      y: [B, D], what the layers said of the last patch; segment: int32 [B], of the text it is in (0 for none).
      used: int32 [B], patches so far. overflow: int32 [B], events for which there was no room.
      room: the patches that the state has room for.
    """

    stacks: dict[str, Any]
    own: dict[str, jax.Array]
    history: jax.Array
    y: jax.Array
    segment: jax.Array
    used: jax.Array
    overflow: jax.Array
    room: int = dataclasses.field(metadata={"static": True})


def global_spec(spec: ModelSpec) -> ModelSpec:
    """The model's own layers, as a model that reads patches."""
    return dataclasses.replace(spec, patcher=None)


@functools.cache
def stack_specs(spec: ModelSpec) -> dict[str, ModelSpec]:
    """Each stack of local layers as a model; the last one has the norm before the head."""
    common = {"vocab_size": 1, "width": spec.patcher.width, "dtype": spec.dtype, "remat": spec.remat}
    common |= {"dropout": spec.dropout, "residual_multiplier": spec.residual_multiplier}
    return {
        name: ModelSpec(**common, layers=layers, norm=spec.norm if name == "decoder" else None)
        for name, layers in spec.patcher.stacks().items()
    }


def _streaming(spec: ModelSpec) -> dict[str, ModelSpec]:
    """What sees the bytes as they come: stacks as models, and whole models."""
    stacks = stack_specs(spec)
    return {name: stacks[name] for name in spec.patcher.streams if name in stacks} | spec.patcher.models()


def _layers_alone(specs: Specs) -> Specs:
    return {name: value for name, value in specs.items() if name not in ("embed", "head")}


def param_specs(spec: ModelSpec) -> Specs:
    """Every parameter; `decoder.param_specs` says what it raises."""
    patcher: Patcher = spec.patcher
    inner = decoder.param_specs(global_spec(spec))
    stacks = {name: _layers_alone(decoder.param_specs(stack)) for name, stack in stack_specs(spec).items()}
    fixed = lambda _, leaf: dataclasses.replace(leaf, decay=False)
    models = {name: map_specs(fixed, decoder.param_specs(model)) for name, model in patcher.models().items()}
    embed = dataclasses.replace(inner["embed"]["table"], shape=(spec.vocab_size, patcher.width))
    specs: Specs = {
        "embed": {"table": dataclasses.replace(embed, init=dataclasses.replace(embed.init, std=patcher.width**-0.5))},
        **_layers_alone(inner),
        "patcher": {**stacks, **models, **patcher.params(decoder.dims_of(spec))},
    }
    head: Specs = {} if spec.tied_head else {"kernel": ParamSpec((patcher.width, spec.vocab_size), ("embed", "vocab"))}
    if spec.head_bias:
        head["bias"] = ParamSpec((spec.vocab_size,), ("vocab",), zeros, decay=False)
    return {**specs, "head": head} if head else specs


def forward_flops(spec: ModelSpec, length: int, of_decoder: Callable[[ModelSpec, int], float]) -> float:
    """`jaxlm.model.describe.forward_flops`, which gives the FLOPs of a model without a patcher as ``of_decoder``."""
    patcher: Patcher = spec.patcher
    slots = patcher.capacity(length)
    one = lambda model, size: of_decoder(model, size) - 2.0 * model.vocab_size * model.width  # without its head
    stacks = sum(
        patcher.load(name) * one(stack, patcher.reach(name, length)) for name, stack in stack_specs(spec).items()
    )
    stacks += sum(of_decoder(model, patcher.reach(name, length)) for name, model in patcher.models().items())
    leaves = (leaf for _, leaf in flatten(patcher.params(decoder.dims_of(spec))))
    own = sum(math.prod(leaf.full_shape) for leaf in leaves if leaf.decay and leaf.fan_in != (1,))  # less the tables
    inner = one(dataclasses.replace(global_spec(spec), tied_head=False), slots)
    return stacks + (inner + 2.0 * own) * slots / length + 2.0 * patcher.width * spec.vocab_size


def max_positions(spec: ModelSpec) -> int | None:
    """The longest text that all position encodings can represent, or None; the model's own count patches."""
    limits = [decoder.max_positions(stream) for stream in _streaming(spec).values()]
    inner = decoder.max_positions(global_spec(spec))
    limits.append(None if inner is None else int(inner / spec.patcher.patches_per_byte))
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def init_state(spec: ModelSpec, batch: int, max_length: int, cache: Any) -> dict[str, Any]:
    """An empty state for rows of up to ``max_length`` bytes.

    Raises `ConfigError` for model layers whose states cannot be written row by row (`Full` caches and recurrent states
    can), and beyond what a position encoding can represent.
    """
    patcher: Patcher = spec.patcher
    limit, room = max_positions(spec), patcher.capacity(max_length)
    require(limit is None or max_length <= limit, f"length {max_length} is beyond the {limit} bytes of this model")
    stacks = {name: decoder.init_state(one, batch, max_length, cache) for name, one in _streaming(spec).items()}
    stacks["model"] = decoder.init_state(global_spec(spec), batch, room + 1, cache)
    stacks["model"]["layers"] = _map_caches(
        lambda entry: dataclasses.replace(entry, cursor=jnp.zeros((batch,), jnp.int32)), stacks["model"]["layers"]
    )
    none = lambda: jnp.zeros((batch,), jnp.int32)  # an array each, so that a state may be donated
    state = PatchState(
        stacks=stacks,
        own=patcher.start(decoder.dims_of(spec), batch, jnp.dtype(spec.dtype)),
        history=jnp.zeros((batch, patcher.history), jnp.int32),
        y=jnp.zeros((batch, spec.width), spec.dtype),
        segment=none(),
        used=none(),
        overflow=none(),
        room=room,
    )
    return {"layers": (), "position": none(), "segment": none(), "patches": state}


def grow(spec: ModelSpec, length: int, state: Any) -> Any:
    """The state with room for ``length`` bytes in every cache."""
    patches: PatchState = state["patches"]
    room = spec.patcher.capacity(length)
    stacks = {}
    for name, held in patches.stacks.items():
        size = room + 1 if name == "model" else length
        layers = (entry.grow(size) if hasattr(entry, "grow") else entry for entry in held["layers"])
        stacks[name] = {**held, "layers": tuple(layers)}
    return {**state, "patches": dataclasses.replace(patches, stacks=stacks, room=room)}


def check_overflow(state: Any) -> None:
    """Raises `ConfigError`, with the count, if rows had more patches than their state has room for."""
    lost = int(np.asarray(state["patches"].overflow).sum())
    require(not lost, _overflow_message(lost, state["patches"].room))


def _overflow_message(lost: int, room: int) -> str:
    return f"{lost} patches found no room: a row has room for {room}; raise the patcher's patches_per_byte"


def _map_caches(change: Any, *trees: Any) -> Any:
    """`FullCache` states changed, recurrent ones as those of the first tree. Raises `ConfigError` for others."""

    def one(first: Any, *rest: Any) -> Any:
        if isinstance(first, FullCache):
            return change(first, *rest)
        if isinstance(first, RecurrentState):
            return first
        if isinstance(first, States):
            return States(tuple(one(*each) for each in zip(first.parts, *(r.parts for r in rest), strict=True)))
        kind = type(first).__name__
        raise ConfigError(f"a model with a patcher keeps its own layers in cache 'full' or in a recurrence, not {kind}")

    return tuple(one(*each) for each in zip(*trees, strict=True))


def _opened(entry: FullCache, more: int) -> FullCache:
    return entry.grow(entry.k.shape[2] + more) if more else entry


def _closed(entry: FullCache, before: FullCache, new: jax.Array) -> FullCache:
    """Cut to its size before, with the cursor behind each row's ``new`` [B] patches: empty slots are written over."""
    size = before.k.shape[2]
    rows = {name: getattr(entry, name)[:, :size] for name in ("position", "segment", "side")}
    return dataclasses.replace(
        entry, k=entry.k[:, :, :size], v=entry.v[:, :, :size], cursor=before.cursor + new, **rows
    )


class Stacks:
    """Runs local stacks and whole models: those that stream with their states, which it keeps, and others without."""

    def __init__(self, spec: ModelSpec, params: Params, states: dict[str, Any] | None, train: bool, rng: Any) -> None:
        self.spec, self.params, self.train, self.rng = spec, params, train, rng
        self.states = None if states is None else dict(states)
        self.reports: list[Aux] = []

    def _run(self, name: str, x: jax.Array, segments: Any, positions: Any, state: Any) -> Any:
        return decoder.forward(
            stack_specs(self.spec)[name],
            self.params[name],
            inputs_embeds=x,
            segment_ids=segments,
            positions=positions,
            state=state,
            train=self.train,
            rng=None if self.rng is None else jax.random.fold_in(self.rng, zlib.crc32(name.encode())),
            logits=False,
        )

    def stream(self, name: str, x: jax.Array, segment_ids: Any, positions: Any = None) -> jax.Array:
        """A stack or model that sees all bytes as they come; one that the patcher does not have gives x."""
        if name not in _streaming(self.spec):
            return x
        state, model = None if self.states is None else self.states[name], self.spec.patcher.models().get(name)
        if model is None:
            out = self._run(name, x, segment_ids, positions, state)
            self.reports.append(out.aux)
        else:
            params = jax.lax.stop_gradient(self.params[name])
            out = decoder.forward(model, params, x, segment_ids=segment_ids, positions=positions, state=state)
            assert out.logits is not None
        if self.states is not None:
            self.states[name] = out.state
        return out.hidden if out.logits is None else out.logits

    def alone(self, name: str, x: jax.Array, segment_ids: Any, positions: Any = None) -> jax.Array:
        """A stack that sees all it needs at once."""
        return self._run(name, x, segment_ids, positions, None).hidden


def forward(
    spec: ModelSpec,
    params: Params,
    tokens: jax.Array | None = None,
    *,
    segment_ids: jax.Array | None = None,
    state: Any = None,
    train: bool = False,
    rng: jax.Array | None = None,
    logits: bool = True,
    **refused: Any,
) -> decoder.Output:
    """`decoder.forward` of a model with a patcher; ``hidden`` is [B, L, d].

    ``Output.aux`` reports ``patch_overflow``, the events of the batch that found no room, ``bytes_per_patch``, and what
    the patcher adds.

    Raises `ConfigError` for what such a model does not take (positions, a declared length, embeddings), and, outside of
    a jit, for events that found no room.
    """
    for name, value in refused.items():
        require(value is None or name == "ordered", f"{name}: a model with a patcher counts its bytes and takes none")
    require(tokens is not None, "a model with a patcher takes tokens")
    assert tokens is not None
    batch, size = tokens.shape
    patcher: Patcher = spec.patcher
    held: PatchState | None = None if state is None else state.get("patches")
    if state is not None and (held is None or len(state["position"]) != batch):
        raise ConfigError("state: a state of another model or batch")
    own = patcher.start(decoder.dims_of(spec), batch, jnp.dtype(spec.dtype)) if held is None else held.own
    back = None
    if segment_ids is not None and size > 1:
        back = _places_of_real(segment_ids)
        rows = jnp.arange(batch)[:, None]
        tokens, segment_ids = (jnp.zeros_like(x).at[rows, back].set(x) for x in (jnp.asarray(tokens), segment_ids))
    segments = jnp.ones((batch, size), jnp.int32) if segment_ids is None else segment_ids
    positions = jnp.broadcast_to(plain_positions(batch, size, segment_ids, state), (batch, size))
    history = jnp.zeros((batch, patcher.history), jnp.int32) if held is None else held.history
    known = jnp.concatenate([history, tokens], 1)
    row = Row(
        tokens=jnp.asarray(tokens),
        segment_ids=segments,
        positions=positions,
        history=history,
        count=(segments != 0).sum(1),
        plain=segment_ids is None,
        embedded=_embedded(spec, params, known),
    )
    p = params["patcher"]
    stacks = Stacks(spec, p, None if held is None else held.stacks, train, rng)
    reading = patcher.read(p, row, own, stacks.stream)

    room = patcher.capacity(size) if held is None else held.room
    used = jnp.zeros((batch,), jnp.int32) if held is None else held.used
    events = reading.events & row.real
    events &= used[:, None] + jnp.cumsum(events, 1) <= room
    lost = (reading.events & row.real & ~events).sum(1)
    if not isinstance(lost, Tracer):
        require(not lost.any(), _overflow_message(int(lost.sum()), room))
    slots = _slots(events, min(size, room), segments)
    new = slots.filled.sum(1)

    def think(inner: Any) -> Any:
        z = patcher.down(p, row, reading, slots, stacks.alone)
        before = None if inner is None else inner["layers"]
        if inner is not None:
            opened = _map_caches(lambda entry: _opened(entry, slots.place.shape[1] - 1), inner["layers"])
            inner = {**inner, "layers": opened}
        out = decoder.forward(
            global_spec(spec),
            params,
            inputs_embeds=z,
            segment_ids=slots.segment_ids,
            state=inner,
            train=train,
            rng=rng,
            logits=False,
        )
        after = out.state
        if after is not None:
            after["layers"] = _map_caches(lambda a, b: _closed(a, b, new), after["layers"], before)
        return out.hidden, after, out.aux

    if held is None:
        y, _, aux = think(None)
        before = jnp.zeros((batch, spec.width), y.dtype), jnp.zeros((batch,), jnp.int32)
    else:
        inner, before = held.stacks["model"], (held.y, held.segment)
        shapes = jax.eval_shape(think, inner)
        none = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[2]))
        skip = lambda inner: (lambda y, aux: (y, inner, aux))(*none())
        y, inner, aux = jax.lax.cond(events.any(), think, skip, inner)
        assert stacks.states is not None
        stacks.states["model"] = inner
    y = patcher.settle(y, reading, slots, before)
    y = jnp.concatenate([before[0][:, None].astype(y.dtype), y], 1)
    texts = jnp.concatenate([before[1][:, None], slots.segment_ids], 1)
    index = jnp.cumsum(events, 1)
    answer = Answer(y=y, index=index, known=(at(texts, index) == segments) & row.real, events=events)
    x = patcher.up(p, row, reading, answer, stacks.stream)
    if held is not None and state is not None:
        assert stacks.states is not None
        state = {
            "layers": (),
            "position": row.last(positions + 1, state["position"]),
            "segment": row.last(segments, state["segment"]),
            "patches": PatchState(
                stacks=stacks.states,
                own=reading.state,
                history=row.tail(known, patcher.history),
                y=at(y, new[:, None])[:, 0].astype(held.y.dtype),
                segment=at(texts, new[:, None])[:, 0],
                used=used + new,
                overflow=held.overflow + lost,
                room=room,
            ),
        }
    count = lambda n: jnp.sum(n).astype(jnp.float32)
    aux = _joined([aux, *stacks.reports, reading.aux])
    aux |= {"patch_overflow": count(lost), "bytes_per_patch": count(row.real) / jnp.maximum(count(new), 1)}
    x = x if back is None else at(x, back)
    return decoder.Output(hidden=x, logits=decoder.unembed(spec, params, x) if logits else None, state=state, aux=aux)


def _places_of_real(segment_ids: jax.Array) -> jax.Array:
    """Where each byte goes so that real ones come first, int32 [B, L], a permutation of each row."""
    real = segment_ids != 0
    return jnp.where(real, jnp.cumsum(real, 1), real.sum(1, keepdims=True) + jnp.cumsum(~real, 1)) - 1


def _embedded(spec: ModelSpec, params: Params, tokens: jax.Array) -> jax.Array:
    x = look_up(spec, params["embed"]["table"], tokens).astype(spec.dtype)
    return x * spec.embed_multiplier if spec.embed_multiplier != 1 else x


def _slots(events: jax.Array, size: int, segment_ids: jax.Array) -> Slots:
    """The first ``size`` events of each row, in order."""
    batch, length = events.shape
    slot = jnp.where(events, jnp.cumsum(events, 1) - 1, size)
    place = jnp.zeros((batch, size), jnp.int32)
    place = place.at[jnp.arange(batch)[:, None], slot].set(jnp.arange(length, dtype=jnp.int32), mode="drop")
    filled = jnp.arange(size) < events.sum(1, keepdims=True)
    return Slots(place, filled, jnp.where(filled, at(segment_ids, place), 0))


def _joined(reports: list[Aux]) -> Aux:
    """Losses of all parts are added; of other reports of one name the first stands."""
    out: Aux = {}
    for aux in reports:
        for name, value in aux.items():
            if name == AUXILIARY_LOSS:
                out[name] = out[name] + value if name in out else value
            else:
                out.setdefault(name, value)
    return out
