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
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import ParamSpec, flatten, map_specs, zeros
from jaxlm.core.types import Params, Specs
from jaxlm.ffn.base import AUXILIARY_LOSS, Aux
from jaxlm.model import decoder
from jaxlm.model.inputs import look_up
from jaxlm.model.patch_stacks import Stacks, global_spec, stack_specs
from jaxlm.model.patch_state import PatchState, closed, map_caches, opened, overflow_message
from jaxlm.model.patcher.base import Answer, Patcher, Row, Slots, at
from jaxlm.model.positions import plain_positions
from jaxlm.model.spec import ModelSpec


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
        require(not lost.any(), overflow_message(int(lost.sum()), room))
    slots = _slots(events, min(size, room), segments)
    new = slots.filled.sum(1)

    def think(inner: Any) -> Any:
        z = patcher.down(p, row, reading, slots, stacks.alone)
        before = None if inner is None else inner["layers"]
        if inner is not None:
            more = slots.place.shape[1] - 1
            inner = {**inner, "layers": map_caches(lambda entry: opened(entry, more), inner["layers"])}
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
            after["layers"] = map_caches(lambda a, b: closed(a, b, new), after["layers"], before)
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
