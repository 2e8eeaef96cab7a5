"""What a model declares of itself: its position encodings, the longest text they can represent, its parameters.

Parameters are a nested dict:

    embed/{table [V, D], up, types}    embed_norm/...    position/<name>/...
    group_<i>/block_<j>/{mixer_norm, mixer, ffn_norm, ffn, ...}    shared/<name>/{mixer, ...}
    final_norm/...    pooler/...    head/{transform, down, kernel [D, V], bias [V]}

A group's arrays carry a leading axis of its repeats.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import FanIn, Normal, ParamSpec, divide, flatten, map_specs, stacked, zeros
from jaxlm.core.types import Dims, PositionEncoding, Specs
from jaxlm.model.head import linear_params
from jaxlm.model.layers import block_specs
from jaxlm.model.spec import ModelSpec


def patched_model(module: str = "patched") -> Any:
    """A module of models with a patcher, which are made of this one."""
    return importlib.import_module(f"jaxlm.model.{module}")


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
        return patched_model("patch_stacks").max_positions(spec)
    limits = [
        limit for encoding, _ in position_encodings(spec).values() if (limit := encoding.max_positions()) is not None
    ]
    if not limits:
        return None
    return min(limits) if spec.edit is None else spec.edit.text(min(limits))


def check_length(spec: ModelSpec, length: int) -> None:
    limit = max_positions(spec)
    if limit is not None and length > limit:
        raise ConfigError(
            f"length {length} is beyond the {limit} positions that the model's position encoding can represent"
        )


def param_specs(spec: ModelSpec) -> Specs:
    """Every parameter of the model. Raises `ConfigError` for widths that do not divide and the like."""
    if spec.patcher is not None:
        return patched_model().param_specs(spec)
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
