"""States of a model whose rows are texts of their own: for views that keep many texts beside each other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.cache.full import Full, FullCache
from jaxlm.model import decoder
from jaxlm.model.spec import ModelSpec


def empty_states(spec: ModelSpec, batch: int, capacity: int) -> dict[str, Any]:
    """As `decoder.init_state` of ``batch`` texts, with full caches of ``capacity`` slots, which may be more than the
    model has positions: a slot may hold padding, or a token as deep as its neighbour."""
    dims, dtype = decoder.dims_of(spec), jnp.dtype(spec.dtype)
    blocks = [block for group in spec.layers for _ in range(group.repeats) for block in group.pattern]
    entries = tuple(block.mixer.init_state(dims, batch, capacity, dtype, Full()) for block in blocks)
    return {"layers": entries, "position": jnp.zeros(batch, jnp.int32), "segment": jnp.zeros(batch, jnp.int32)}


def is_cache(x: Any) -> bool:
    return isinstance(x, FullCache)


def why_not(spec: ModelSpec) -> str:
    """Why the states of a model cannot be kept text by text; empty if they can."""
    if spec.edit is not None:
        return "the model edits its input"
    if spec.patcher is not None:
        return "the model makes patches of bytes"
    for name, (encoding, _) in decoder.position_encodings(spec).items():
        if encoding.reads_tokens:
            return f"position {name!r} remembers the tokens"
        if encoding.by_length:
            return f"position {name!r} scales with the length"
    layers = jax.eval_shape(lambda: empty_states(spec, 3, 5)["layers"])
    for leaf in jax.tree.leaves(layers, is_leaf=is_cache):
        if not is_cache(leaf) and (leaf.ndim == 0 or leaf.shape[0] != 3):
            return "a layer's state is not one for each row"
    return ""
