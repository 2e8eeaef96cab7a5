"""The state of a model with a patcher: one for each streaming stack and for the model's layers, and what is between.

The caches of the model's layers have room for patches and not for bytes. Each row writes its own number of them, so a
row's cursor is its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.cache.full import FullCache
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.mixer.composite import States
from jaxlm.mixer.recurrent import RecurrentState
from jaxlm.model import decoder
from jaxlm.model.patch_stacks import global_spec, max_positions, streaming
from jaxlm.model.patcher.base import Patcher
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


def init_state(spec: ModelSpec, batch: int, max_length: int, cache: Any) -> dict[str, Any]:
    """An empty state for rows of up to ``max_length`` bytes.

    Raises `ConfigError` for model layers whose states cannot be written row by row (`Full` caches and recurrent states
    can), and beyond what a position encoding can represent.
    """
    patcher: Patcher = spec.patcher
    limit, room = max_positions(spec), patcher.capacity(max_length)
    require(limit is None or max_length <= limit, f"length {max_length} is beyond the {limit} bytes of this model")
    stacks = {name: decoder.init_state(one, batch, max_length, cache) for name, one in streaming(spec).items()}
    stacks["model"] = decoder.init_state(global_spec(spec), batch, room + 1, cache)
    stacks["model"]["layers"] = map_caches(
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
    require(not lost, overflow_message(lost, state["patches"].room))


def overflow_message(lost: int, room: int) -> str:
    return f"{lost} patches found no room: a row has room for {room}; raise the patcher's patches_per_byte"


def map_caches(change: Any, *trees: Any) -> Any:
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


def opened(entry: FullCache, more: int) -> FullCache:
    """With room for so many more patches."""
    return entry.grow(entry.k.shape[2] + more) if more else entry


def closed(entry: FullCache, before: FullCache, new: jax.Array) -> FullCache:
    """Cut to its size before, with the cursor behind each row's ``new`` [B] patches: empty slots are written over."""
    size = before.k.shape[2]
    rows = {name: getattr(entry, name)[:, :size] for name in ("position", "segment", "side")}
    return dataclasses.replace(
        entry, k=entry.k[:, :, :size], v=entry.v[:, :, :size], cursor=before.cursor + new, **rows
    )
