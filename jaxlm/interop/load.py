"""Hugging Face checkpoints in: config.json and safetensors become a model and its parameters.

Tensors are read one at a time and go to the devices in pieces of a few layers, so that the host never holds more than
that beside what its devices keep. No code from the folder is run and nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import dist
from jaxlm.core import registry
from jaxlm.core.errors import ConfigError, choose, unknown
from jaxlm.core.params import ParamSpec, flatten, map_specs
from jaxlm.core.types import Params
from jaxlm.interop.config import Config
from jaxlm.interop.family import Family
from jaxlm.interop.layout import Place, names, resolve
from jaxlm.interop.tensors import Tensors, open_folder
from jaxlm.model import decoder
from jaxlm.model.encoder_decoder import model_of, pure_of
from jaxlm.model.spec import ModelSpec

DTYPES = ("float32", "bfloat16", "float16")
CHUNK = 8 << 20  # bytes of one parameter that are assembled on the host before they go to the devices


def load_hf(
    folder: str | os.PathLike[str], *, dtype: str | None = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[Any, Params]:
    """A model and its parameters from a Hugging Face checkpoint folder.

    Args:
      folder: with config.json and model.safetensors, or shards and their index. The spellings of transformers 4 and 5
        are read.
      dtype: of parameters and activations, ``"float32"``, ``"bfloat16"`` or ``"float16"``; None for the file's own.
      mesh: places the parameters by the axis rules as they are read; None for the default device.

    Returns:
      The model, a `LanguageModel` or an `EncoderDecoder` (its ``origin`` is the folder, whose tokenizer and generation
      files `save_hf` carries on), and its parameters.

    Raises:
      ConfigError: in one line, for an architecture or a setting that is not supported (named, with why), tensors that
        are missing, left over or of another shape, and files that are damaged, absent, pickled, or point elsewhere.
    """
    model, plan, tensors = _opened(folder, dtype)
    specs = model.pure.param_specs()
    return model, map_specs(lambda name, leaf: _assemble(leaf, plan[name], tensors, dtype, mesh), specs)


def model_of_folder(folder: str | os.PathLike[str]) -> Any:
    """The model alone, as `load_hf` returns and refuses it: of the tensors, names and shapes are read."""
    return _opened(folder, None)[0]


def _opened(folder: str | os.PathLike[str], dtype: str | None) -> tuple[Any, Mapping[str, Source], Checkpoint]:
    """The model of a folder, where each of its parameters comes from, and the tensors, which are there and fit."""
    if dtype is not None:
        choose("dtype", dtype, DTYPES)
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; expected a Hugging Face checkpoint with config.json")
    c = Config.from_folder(path)
    family = family_of(c)
    spec = family.read(c)
    tensors = Checkpoint(open_folder(path), family, spec)
    spec = family.stored(spec, dtype or tensors.dtype(), tensors.names())
    plan = plan_of(family, spec)
    tensors.check(spec, plan)
    if keys := c.unread():
        warnings.warn(f"{path}: config.json has keys that are taken to change nothing: {', '.join(keys)}", stacklevel=3)
    return model_of(spec, str(path.resolve())), plan, tensors


def family_of(c: Config) -> Family:
    """The family of a config.json. Raises `ConfigError` naming the supported ones if there is none."""
    kind = c.text("model_type", default="")
    known = registry.methods("family")
    architectures = c.sequence("architectures", default=[])
    if kind not in known:
        raise unknown("model_type of config.json", kind or (architectures or [""])[0], known)
    family: Any = registry.get("family", kind)
    for name in architectures:
        if name not in family.architectures:
            raise unknown(f"architecture of a {kind} checkpoint", name, family.architectures)
    return family


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one parameter is stored: the places of each of its layers (of one, where it lives once)."""

    layers: tuple[tuple[Place, ...], ...]


def plan_of(family: Family, spec: Any) -> dict[str, Source]:
    """The stored tensors of every parameter, by path. Raises `ConfigError` if the family has none for one."""
    wanted, out = dict(flatten(pure_of(spec).param_specs())), {}
    for prefix, (own, stack) in family.stacks(spec).items():
        out |= {prefix + path: source for path, source in _plan_of_stack(own, stack).items() if prefix + path in wanted}
    if rest := wanted.keys() - out.keys():
        raise ConfigError(f"{family.model_type} has no tensor for parameter {min(rest)}")
    return out


def _plan_of_stack(family: Family, spec: ModelSpec) -> dict[str, Source]:
    table, numbers = family.names(spec), family.numbers(spec)

    def places(name: str, own: Mapping[str, int], shape: tuple[int, ...], mixer: str = "") -> tuple[Place, ...]:
        found = table.get(f"{mixer}:{name}", table.get(name))
        if found is None:
            raise ConfigError(f"{family.model_type} has no tensor for parameter {name}")
        return resolve(found, own, shape)

    first, offsets = 0, []
    for g in spec.layers:
        offsets.append(first)
        first += g.repeats * len(g.pattern)
    out: dict[str, Source] = {}
    for path, leaf in flatten(decoder.param_specs(spec)):
        if not leaf.stack:
            out[path] = Source((places(path, {}, leaf.shape),))
            continue
        head, block, own = path.split("/", 2)
        i, j = int(head.removeprefix("group_")), int(block.removeprefix("block_"))
        stride, mixer = len(spec.layers[i].pattern), registry.name_of("mixer", spec.layers[i].pattern[j].mixer)
        layers = (places(own, numbers[offsets[i] + r * stride + j], leaf.shape, mixer) for r in range(leaf.stack))
        out[path] = Source(tuple(layers))
    return out


def stored_shapes(plan: Mapping[str, Source], spec: Any) -> dict[str, tuple[int, ...]]:
    """The name and shape of every stored tensor of a model."""
    leaves = dict(flatten(pure_of(spec).param_specs()))
    return {
        place.name: place.shape(leaves[path].shape)
        for path, source in plan.items()
        for layer in source.layers
        for place in layer
    }


class Checkpoint:
    """The tensors of a folder under the names of today: old spellings and missing prefixes are seen to here."""

    def __init__(self, tensors: Tensors, family: Family, spec: Any):
        self._tensors, self._family, self._table = tensors, family, family.names(spec)
        self._names = {self._today(name): name for name in tensors}
        prefix = family.prefix
        if prefix and not any(name.startswith(prefix) for name in self._names):  # saved from the bare model
            outside = {name for name in names(self._table) if not name.startswith(prefix)}
            self._names = {name if name in outside else prefix + name: own for name, own in self._names.items()}

    def _today(self, name: str) -> str:
        for old, new in self._family.renamed.items():
            name = re.sub(old, new, name)
        return name

    def stored(self, name: str) -> Any:
        """Shape and dtype of a tensor."""
        return self._tensors[self._names[name]]

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._names[name])

    def dtype(self) -> str:
        """The dtype that most numbers have. Raises `ConfigError` if it is not one that models come in."""
        sizes: dict[str, int] = {}
        for stored in self._tensors.values():
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.nbytes
        found = max(sizes, key=lambda name: sizes[name])
        if found not in DTYPES:
            raise ConfigError(f"{self._tensors.folder}: tensors of {found}; allowed: {', '.join(DTYPES)}")
        return found

    def names(self) -> Collection[str]:
        """Of all tensors, as they are called today."""
        return self._names.keys()

    def check(self, spec: Any, plan: Mapping[str, Source]) -> None:
        """Raises `ConfigError` naming tensors that are missing, left over or of another shape."""
        wanted, where = stored_shapes(plan, spec), self._tensors.folder
        if missing := [name for name in wanted if name not in self._names]:
            raise ConfigError(f"{where}: missing tensors {_some(missing)}, which {self._family.model_type} needs")
        for name, shape in wanted.items():
            found = self.stored(name).shape
            if found != shape:
                raise ConfigError(f"{where}: tensor {name} has shape {list(found)}, config.json makes it {list(shape)}")
        extra = [name for name in self._names if name not in wanted]
        known = [name for name in extra if self._is_buffer(name, spec)]
        if unknown_ones := [name for name in extra if name not in known]:
            raise ConfigError(
                f"{where}: tensors {_some(unknown_ones)} belong nowhere in a {self._family.model_type} model of this "
                "configuration"
            )
        if known:
            warnings.warn(f"{where}: buffers left out: {_some(known)}", stacklevel=5)

    def _is_buffer(self, name: str, spec: Any) -> bool:
        """A known buffer, or the head's own copy of a tied embedding."""
        heads = self._table.get("head/kernel", ())
        tied = pure_of(spec).writer.tied_head and name in {place.name for place in heads}
        return tied or any(re.search(pattern, name) for pattern in self._family.buffers)


def _some(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(sorted(names)[:count]) + more


def _assemble(leaf: ParamSpec, source: Source, tensors: Checkpoint, dtype: str | None, mesh: Any) -> jax.Array:
    """One parameter on its devices, read a chunk of layers at a time."""
    own = jnp.dtype(dtype or tensors.stored(source.layers[0][0].name).dtype)
    place = None if mesh is None else dist.sharding(mesh, leaf.full_axes, leaf.full_shape)
    per_layer = math.prod(leaf.shape) * own.itemsize
    size = min(len(source.layers), max(1, CHUNK // max(per_layer, 1)))
    chunks = _chunks(leaf, source, tensors, own, size)
    if size == len(source.layers):
        whole = next(chunks)
        return _put(whole if leaf.stack else whole[0], place)
    whole = _zeros(leaf.full_shape, own, place)
    for i, chunk in enumerate(chunks):
        whole = jax.block_until_ready(_write(whole, _put(chunk, place), i * size))  # else chunks pile up on the host
    return whole


def _chunks(leaf: ParamSpec, source: Source, tensors: Checkpoint, dtype: Any, size: int) -> Iterator[np.ndarray]:
    """Arrays [<= size, *leaf.shape] of successive layers."""
    for start in range(0, len(source.layers), size):
        layers = source.layers[start : start + size]
        if len(layers) == 1 and len(layers[0]) == 1 and layers[0][0].as_is:  # an embedding: not held twice
            yield tensors.read(layers[0][0].name).astype(dtype, copy=False)[None]
            continue
        out = np.empty((len(layers), *leaf.shape), dtype)
        for row, places in zip(out, layers, strict=True):
            for place in places:
                place.fill(row, tensors.read(place.name))
        yield out


def _put(array: np.ndarray, place: Any) -> jax.Array:
    if place is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def _zeros(shape: tuple[int, ...], dtype: Any, place: Any) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=place)()


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole: jax.Array, chunk: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, chunk, start, 0)
