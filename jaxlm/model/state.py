"""The explicit state of a model: one entry a block, and how far each row has come."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.model.declaration import check_length, dims_of, patched_model, position_encodings
from jaxlm.model.spec import ModelSpec


def init_state(spec: ModelSpec, batch: int, max_length: int, cache: Any, source_length: int = 0) -> dict[str, Any]:
    """An empty state: one entry per block, each row's next position and last segment; where the model edits its input,
    how many tokens of the text it has had; and what position encodings that read tokens remember of them.

    ``source_length`` is that of the memory which the model is to read. Raises `ConfigError` if ``max_length`` is beyond
    what a position encoding can represent, and where the model reads a memory and there is to be none.
    """
    if spec.patcher is not None:
        return patched_model("patch_state").init_state(spec, batch, max_length, cache)
    check_length(spec, max_length)
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


def check_state(spec: ModelSpec, state: Any, batch: int) -> None:
    layers, rows = len(state["layers"]), len(state["position"])
    require(
        layers == spec.depth and rows == batch,
        f"state: a state of another model or batch: of {layers} layers and {rows} rows; "
        f"the model has {spec.depth} layers, the tokens {batch} rows",
    )


def advance(
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
