"""Hugging Face checkpoints out: a folder that transformers loads, from an imported model or one of our own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import registry
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.params import flatten
from jaxlm.core.types import Params
from jaxlm.interop import tokenizer_files
from jaxlm.interop.card import CARD, write_card
from jaxlm.interop.config import Config
from jaxlm.interop.family import TOKENS, Family, different
from jaxlm.interop.layout import Place
from jaxlm.interop.load import DTYPES, family_of, plan_of
from jaxlm.interop.replace import replace_folder
from jaxlm.interop.tensors import Planned, write_folder
from jaxlm.model.language_model import Model
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.hf import check_vocabulary

# Files that are carried along untouched where the model was imported from a folder; code never is.
OTHERS = ("generation_config.json", "preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE")
CARRIED = (*tokenizer_files.NAMES, *OTHERS)


def save_hf(
    model: Model,
    params: Params,
    folder: str | os.PathLike[str],
    *,
    family: str = "",
    dtype: str | None = None,
    shard_size: int = 5_000_000_000,
    overwrite: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Writes config.json, safetensors, a model card, and the tokenizer and generation files the model came with.

    Args:
      model, params: of `load_hf`, or any model that a family can express; ``params`` stacked or unstacked.
      folder: new or empty. It appears whole or not at all: everything is written beside it and renamed.
      family: the ``model_type`` to write; empty for that of the model's origin, else the first that can express it.
      dtype: of the tensors, ``"float32"``, ``"bfloat16"`` or ``"float16"``; None for that of each parameter.
      shard_size: bytes of tensors in one file.
      overwrite: replace a folder that is not empty; a crash leaves the old one whole.
      tokenizer: of a model that was trained here; its files are written too (bytes, byte-level BPE, or those of a
        Hugging Face folder), and its special ids. None for the files of the model's origin.

    Returns:
      The folder.

    Raises:
      ConfigError: in one line: no family can express the model (what stands in the way is named), parameters that are
        not the model's, a tokenizer without such files or with other ids, or a folder that may not be written.
    """
    if dtype is not None:
        choose("dtype", dtype, DTYPES)
    chosen, settings = _describe(model, family)
    leaves, specs = _leaves(params, model), dict(flatten(model.pure.param_specs()))
    stored = dtype or _most(leaves)
    settings = {**settings, "dtype": stored, "torch_dtype": stored}
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.spec.vocab_size)
        settings |= tokenizer_files.special_ids(tokenizer)
    parts: dict[str, list[tuple[Leaf, int, Place, tuple[int, ...]]]] = {}
    for path, source in plan_of(chosen, model.spec).items():
        for layer, places in enumerate(source.layers):
            for place in places:
                parts.setdefault(place.name, []).append((leaves[path], layer, place, specs[path].shape))
    tensors = {name: _planned(found, dtype) for name, found in parts.items()}
    origin = Path(model.origin) if model.origin else None
    with replace_folder(folder, overwrite) as new:
        (new / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for name in CARRIED if tokenizer is None else OTHERS:
            if origin is not None and (origin / name).is_file():
                shutil.copyfile(origin / name, new / name)
        if tokenizer is not None:
            tokenizer_files.write(tokenizer, new, adds_bos=tokenizer.adds_bos)
        write_folder(new, tensors, shard_size=shard_size)
        write_card(new / CARD, model, chosen, origin)
    return Path(folder)


def _describe(model: Model, family: str) -> tuple[Family, dict[str, Any]]:
    """The family and the config.json of a model."""
    tokens: dict[str, Any] = {}
    origin = Path(model.origin) if model.origin else None
    if origin is not None and (origin / "config.json").is_file():
        c = Config.from_folder(origin)
        own = family_of(c)
        if family in ("", own.model_type) and not different(own.alike(own.read(c), model.spec), model.spec):
            return own, json.loads((origin / "config.json").read_text(encoding="utf-8"))  # untouched
        family = family or own.model_type
        tokens = {key: c[key] for key in TOKENS if key in c}
    known = registry.methods("family")
    if family:
        chosen: Any = registry.get("family", choose("family", family, known))
        return chosen, chosen.write(model.spec) | tokens
    reasons = []
    for name in sorted(known, key=lambda name: (name != "llama", name)):  # what most software reads, first
        candidate: Any = registry.get("family", name)
        try:
            return candidate, candidate.write(model.spec)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError(f"no Hugging Face family can express this model; the first tried: {reasons[0]}")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter: one array for all layers (``stacked`` or not), or one for each."""

    arrays: list[Any]
    stacked: bool

    @property
    def dtype(self) -> str:
        return str(jnp.dtype(self.arrays[0].dtype))

    def layer(self, index: int) -> np.ndarray:
        """One layer's array, fetched from the devices."""
        if self.stacked:
            return np.asarray(jax.device_get(self.arrays[0][index]))
        return np.asarray(jax.device_get(self.arrays[index]))


def _arrays(tree: Params, prefix: str = "") -> dict[str, list[Any]]:
    """The arrays of each path: one, or one for each layer of a group that was taken apart."""
    arrays: dict[str, list[Any]] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, (list, tuple)):
            layers = [dict(flatten(layer, path)) for layer in value]
            arrays |= {path: [layer[path] for layer in layers] for path in layers[0]}
        else:
            arrays |= _arrays(value, f"{path}/") if isinstance(value, Mapping) else {path: [value]}
    return arrays


def _leaves(params: Params, model: Model) -> dict[str, Leaf]:
    """Every parameter by path. Raises `ConfigError` naming one that is missing, not the model's, or misshapen."""
    arrays, specs = _arrays(params), dict(flatten(model.pure.param_specs()))
    if odd := sorted(set(specs) ^ set(arrays)):
        what = "is missing" if odd[0] in specs else "is not one of the model's"
        raise ConfigError(f"parameter {odd[0]} {what}")
    out = {}
    for path, found in arrays.items():
        leaf = specs[path]
        apart = len(found) > 1 or (leaf.stack == 1 and found[0].ndim == len(leaf.shape))
        shape = leaf.shape if apart else leaf.full_shape
        if any(tuple(array.shape) != shape for array in found) or len(found) not in (1, leaf.stack):
            raise ConfigError(f"parameter {path} has shape {list(found[0].shape)}, the model makes it {list(shape)}")
        out[path] = Leaf(found, stacked=bool(leaf.stack) and not apart)
    return out


def _planned(parts: list[tuple[Leaf, int, Place, tuple[int, ...]]], dtype: str | None) -> Planned:
    """A stored tensor of one of our arrays, or of the rows that several have of it: each a leaf, the layer, its place
    and the array's shape."""
    leaf, _, place, shape = parts[0]
    own, stored = dtype or leaf.dtype, place.shape(shape)

    def make() -> np.ndarray:
        cuts = [at.cut(one.layer(layer).astype(jnp.dtype(own), copy=False)) for one, layer, at, _ in parts]
        if place.rows is None:
            return cuts[0]
        whole = np.empty(stored, cuts[0].dtype)
        for cut, (_, _, at, _) in zip(cuts, parts, strict=True):
            assert at.rows is not None
            view = at.rows.of(whole)
            view[...] = cut.reshape(view.shape)
        return whole

    return Planned(stored, own, make)


def _most(leaves: Mapping[str, Leaf]) -> str:
    """The dtype of most numbers."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        sizes[leaf.dtype] = sizes.get(leaf.dtype, 0) + sum(array.size for array in leaf.arrays)
    return max(sizes, key=lambda name: sizes[name])
