"""Editing the text behind a cache without reading all of it again.

He et al. 2024, Let the Code LLM Edit Itself When You Edit the Code (positional integrity encoding): keys behind the
edit move to their new positions, the new tokens are read where they stand, and what is behind keeps what it knew. All
positions are then right. The content is exact in a model of one layer; in deeper ones, what lies behind the edit has
not read the new tokens, which is the price of not reading it again. Learned: nothing. Claimed: 85 % less work and
nearly the same quality in completing code that is being edited. Shown by: experiments.cache_edit.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.cache import edit
from jaxlm.cache.full import FullCache
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.params import map_specs
from jaxlm.core.types import Dims, Params, PositionEncoding
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec


def edit_cache(
    model: LanguageModel, params: Params, state: Any, at: Any, delete: int = 0, insert: Any = ()
) -> tuple[Any, jax.Array | None]:
    """The state of a text in which the ``delete`` tokens from position ``at`` on are replaced by the tokens ``insert``.

        state = model.apply({"params": params}, text, state=jaxlm.init_state(model, 1, 1000)).state
        state, _ = edit_cache(model, params, state, at=12, insert=new)               # insert
        state, _ = edit_cache(model, params, state, at=12, delete=3)                 # delete
        state, _ = edit_cache(model, params, state, at=12, delete=3, insert=new)     # replace
        state, logits = edit_cache(model, params, state, at=end - 1, delete=1, insert=text[:, -1:])  # and go on

    The last line reads the text's last token again, of whose logits, ``logits[:, -1]``, the text continues.

    Args:
      model, params: the model; ``params`` stacked or unstacked.
      state: of texts read so far, with the cache ``full``. Of packed rows, the last document is edited.
      at: integer, or integers [B], the position of the first token that changes; that after the last one appends.
      delete: how many tokens leave.
      insert: integers [n], for all rows, or [B, n].

    Returns:
      The new state, whose freed slots take further tokens, and the logits float32 [B, n, V] of the inserted tokens, or
      None without any.

    Raises:
      ConfigError: an edit outside the cached text, more tokens than the cache has room for, a state without full
        caches, or an encoding whose positions are not all in queries and keys, so that keys and values cannot be moved.
    """
    tokens = _checked_tokens(model.spec, insert, len(state["position"]))
    require(
        model.spec.patcher is None, "edit_cache: a model that makes patches of its text cannot have the text edited"
    )
    _check_model(model.spec, tuple((type(one), getattr(one, "rotated", False)) for one in state["layers"]))
    places = _checked_edit(state, at, delete, tokens.shape[1])
    return _edit(model.spec, delete, params, state, jnp.asarray(places), jnp.asarray(tokens))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _edit(
    spec: ModelSpec, delete: int, params: Params, state: Any, at_B: jax.Array, tokens_BL: jax.Array
) -> tuple[Any, jax.Array | None]:
    size = tokens_BL.shape[1]
    layers = tuple(
        edit.make_room(cache, state["segment"], at_B, delete, size, _rerotation(encoding))
        for cache, (encoding, _) in zip(state["layers"], _encodings(spec), strict=True)
    )
    after, logits = {**state, "layers": layers}, None
    if size:
        positions = at_B[:, None] + jnp.arange(size, dtype=jnp.int32)
        segments = jnp.broadcast_to(state["segment"][:, None], tokens_BL.shape)
        out = decoder.forward(spec, params, tokens_BL, positions=positions, segment_ids=segments, state=after)
        after, logits = out.state, out.logits
    layers = tuple(
        edit.close_room(cache, each_row=before.cursor.ndim > 0)
        for cache, before in zip(after["layers"], state["layers"], strict=True)
    )
    position = state["position"] + (size - delete)
    return {**after, "layers": layers, "position": position, "segment": state["segment"]}, logits


def _encodings(spec: ModelSpec) -> list[tuple[PositionEncoding | None, Dims]]:
    """The position encoding of every layer, with the dims it sees."""
    found = []
    for group in spec.layers:
        for repeat in range(group.repeats):
            for block in group.blocks({path: values[repeat] for path, values in group.per_layer}):
                encoding = getattr(block.mixer, "position", None)
                dims = decoder.dims_of(spec)
                found.append((encoding, dims if encoding is None else block.mixer.dims(dims)))
    return found


def _rerotation(encoding: Any) -> edit.Rerotate:
    """How its keys move where they are stored rotated."""

    def move(k: jax.Array, shift: jax.Array) -> jax.Array:
        return (
            k
            if _never_turns(encoding)
            else edit.rerotate(k, shift, encoding.frequencies({}, k.shape[-1]), encoding.pairing)
        )

    return move


@functools.lru_cache
def _check_model(spec: ModelSpec, caches: tuple[tuple[type, bool], ...]) -> None:
    """Raises `ConfigError` for a model or a state whose keys cannot be moved.

    Args:
      spec: of the model.
      caches: what each layer holds, and whether it holds rotated keys.
    """
    require(spec.edit is None, "edit_cache: a model that adds tokens to its text by itself cannot have it edited")
    for i, ((kind, rotated), (encoding, dims)) in enumerate(zip(caches, _encodings(spec), strict=True)):
        require(
            kind is FullCache and encoding is not None,
            f"edit_cache: layer {i} holds {kind.__name__}; expected the cache 'full' in every layer",
        )
        assert encoding is not None
        name = registry.name_of("position", encoding)
        one = jnp.zeros((1, 1), jnp.int32)
        require(
            not encoding.reads_tokens and not _embeds(encoding, dims, spec.width),
            f"edit_cache: position {name!r} is added to the tokens, so their keys and values cannot be moved",
        )
        require(
            not encoding.side_width(dims),
            f"edit_cache: position {name!r} counts along the text, so the keys behind an edit cannot be moved",
        )
        require(
            encoding.draw(jax.random.key(0), one) is one,
            f"edit_cache: position {name!r} draws the positions of a text once, for its whole length",
        )
        require(
            not rotated or _never_turns(encoding) or (name == "rotary" and not encoding.params(dims)),
            f"edit_cache: keys rotated by position {name!r} cannot be moved; use the cache Full(rotated=False)",
        )


def _embeds(encoding: PositionEncoding, dims: Dims, width: int) -> bool:
    """Whether it adds something to the embeddings of tokens."""
    params = map_specs(lambda _, spec: jax.ShapeDtypeStruct(spec.full_shape, jnp.float32), encoding.params(dims))
    added = jax.eval_shape(lambda p: encoding.embed(p, jnp.zeros((1, 1), jnp.int32), width), params)
    return added is not None


def _never_turns(encoding: PositionEncoding) -> bool:
    """It leaves keys alone, so that rotated or not they are the same."""
    return type(encoding).rotate is PositionEncoding.rotate


def _checked_tokens(spec: ModelSpec, insert: Any, batch: int) -> np.ndarray:
    tokens = np.asarray(insert) if np.size(insert) else np.zeros((0,), np.int32)
    require(
        tokens.dtype.kind in "iu" and tokens.ndim in (1, 2) and (tokens.ndim == 1 or len(tokens) == batch),
        f"insert: expected integers [n] or [{batch}, n], got {tokens.dtype} {list(tokens.shape)}",
    )
    odd = tokens[(tokens < 0) | (tokens >= spec.vocab_size)]
    require(not odd.size, f"insert: token {odd[:1]} is outside the vocabulary of {spec.vocab_size}")
    return np.broadcast_to(tokens, (batch, tokens.shape[-1])).astype(np.int32)


def _checked_edit(state: Any, at: Any, delete: int, size: int) -> np.ndarray:
    """The first position of each row's edit, int32 [B]. Raises `ConfigError` for one outside the cached text."""
    end, segment, cache = np.asarray(state["position"]), np.asarray(state["segment"]), state["layers"][0]
    places = np.asarray(at)
    require(
        places.dtype.kind in "iu" and places.shape in ((), end.shape),
        f"at: expected an integer or {len(end)} of them, got {places.dtype} {list(places.shape)}",
    )
    require(isinstance(delete, int) and delete >= 0, f"delete: expected a number of tokens, got {delete}")
    places = np.broadcast_to(places, end.shape).astype(np.int32)
    held, own = np.asarray(cache.position), np.asarray(cache.segment) == segment[:, None]
    gone = (own & (held >= places[:, None]) & (held < places[:, None] + delete)).sum(1)
    begin = np.where(own, held, end[:, None]).min(1)
    for row in range(len(end)):
        require(
            segment[row] and begin[row] <= places[row] <= end[row] and gone[row] == delete,
            f"at: tokens {places[row]} to {places[row] + delete} of row {row} are not all cached; it holds "
            f"{begin[row]} to {end[row]}",
        )
    slots = int((np.asarray(cache.segment) != 0).sum(1).max()) - delete + size
    require(
        slots <= cache.k.shape[2] and not np.asarray(cache.overflowed).any(),
        f"insert: {size} more tokens need {slots} slots; the cache has {cache.k.shape[2]}",
    )
    return places
