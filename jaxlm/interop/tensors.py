"""Folders of safetensors, read and written one tensor at a time.

The format (https://github.com/huggingface/safetensors#format) is eight bytes of header length, a JSON header
``{name: {"dtype", "shape", "data_offsets"}}`` and the tensors' bytes end to end. A folder holds one
``model.safetensors``, or shards and ``model.safetensors.index.json``, which says what is in which. That is little
enough to read and write here, with numpy alone, and so to stream: never more than one tensor is in memory. Nothing read
is trusted: a file whose offsets, sizes or names do not add up is refused when the folder is opened, before any tensor
is read. Pickles are not read at all.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors library
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


# Reading.


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, the name of its numpy dtype (``"bfloat16"``), and where its bytes are."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


class Tensors(Mapping[str, Stored]):
    """The tensors of a folder by name, as `open_folder` found them; `read` brings one into memory."""

    def __init__(self, folder: Path, stored: Mapping[str, Stored]) -> None:
        self.folder = folder
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> Stored:
        return self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, an array of its own. Raises `ConfigError` if its file has changed or gone."""
        stored = self._stored[name]
        try:
            data = np.fromfile(stored.file, np.uint8, stored.nbytes, offset=stored.offset)
        except OSError as error:
            raise ConfigError(f"{stored.file}: cannot be read: {error.strerror or error}") from None
        require(data.size == stored.nbytes, f"{stored.file}: has become shorter since it was opened")
        return data.view(jnp.dtype(stored.dtype)).reshape(stored.shape)


def open_folder(folder: str | os.PathLike[str]) -> Tensors:
    """The tensors of a checkpoint folder; headers and index are read and checked, the tensors are not touched.

    Takes ``model.safetensors``, else ``model.safetensors.index.json`` and the shards it names. Shards may be symbolic
    links (the cache of the Hugging Face hub is made of them), but the index can only name files of the folder itself.
    A tensor that is in a shard but not in the index is listed like the others.

    Raises:
      ConfigError: in one line, for a folder that is missing, empty or has only pickled weights; an index that is not
        JSON, leads outside the folder, or disagrees with the shards; a file that is truncated, damaged, or holds a
        dtype that numpy does not have; a tensor that is in two shards.
    """
    path = Path(folder)
    require(path.is_dir(), f"{path}: {'is a file' if path.exists() else 'no such folder'}; expected {_EXPECTED}")
    if (path / SINGLE).exists():
        return Tensors(path, _read_header(path / SINGLE))
    if not (path / INDEX).exists():
        raise _no_weights(path)
    weight_map = _read_index(path / INDEX)
    files = sorted(set(weight_map.values()))
    absent = [file for file in files if not (path / file).is_file()]
    require(not absent, f"{path / INDEX}: names shards that are not there: {_few(absent)}")
    stored: dict[str, Stored] = {}
    for file in files:
        for name, tensor in _read_header(path / file).items():
            if name in stored:
                raise ConfigError(f"{path}: tensor {shown(name)} is in both {stored[name].file.name} and {file}")
            stored[name] = tensor
    for name, file in weight_map.items():
        if name not in stored or stored[name].file.name != file:
            there = f"; it is in {stored[name].file.name}" if name in stored else ""
            raise ConfigError(f"{path / INDEX}: {file} does not hold tensor {shown(name)}{there}")
    return Tensors(path, stored)


_EXPECTED = f"a folder with {SINGLE}, or {INDEX} and its shards"


def _no_weights(folder: Path) -> ConfigError:
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        return ConfigError(
            f"{folder}: its weights are pickles ({_few(pickles)}), which can run code and are never read here; if you "
            "trust them, convert them with transformers: model.save_pretrained(new_folder, safe_serialization=True)"
        )
    return ConfigError(f"{folder}: no weights; expected {_EXPECTED}, found {_few(names)}")


def _read_index(path: Path) -> dict[str, str]:
    """The ``weight_map`` of an index: tensor -> name of a file beside it."""
    index = _json(path, _contents(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"{path}: has no weight_map of tensor names to shards")
    for file in weight_map.values():
        plain = isinstance(file, str) and not set(file) & {"/", "\\", ":", "\0"} and file.endswith(".safetensors")
        require(plain, f"{path}: shard {shown(file)} is not the name of a .safetensors file in this folder")
    return weight_map


def _read_header(path: Path) -> dict[str, Stored]:
    """What a file holds, after checking that its header accounts for every byte of it."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            fits = 2 <= length <= min(size - 8, _LONGEST_HEADER)
            require(fits, f"{path}: truncated or not safetensors: {size} bytes, header of {length}")
            header = _json(path, file.read(length))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    require(isinstance(header, dict), f"{path}: its header is not a JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    found = {name: _stored(path, name, entry, start) for name, entry in header.items()}
    end = start
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        gap = "overlaps the one before" if tensor.offset < end else "leaves bytes before it unused"
        require(tensor.offset == end, f"{path}: damaged: tensor {shown(name)} {gap}")
        end += tensor.nbytes
    require(end <= size, f"{path}: truncated: {size} bytes of {end}")
    require(end == size, f"{path}: damaged: {size - end} bytes after the last tensor")
    return found


def _stored(path: Path, name: str, entry: Any, start: int) -> Stored:
    where = f"{path}: tensor {shown(name)}"
    entry = entry if isinstance(entry, dict) else {}
    code, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    require(isinstance(code, str) and _naturals(shape) and _naturals(offsets) and len(offsets) == 2,
            f"{where}: expected dtype, shape and two data_offsets, got {shown(entry)}")  # fmt: skip
    require(
        code in _DTYPES, f"{where} has dtype {shown(code)}, which is not supported; these are: {', '.join(_DTYPES)}"
    )
    stored = Stored(tuple(shape), _DTYPES[code].name, path, start + offsets[0])
    require(
        stored.nbytes == offsets[1] - offsets[0],
        f"{where}: {code} of shape {shape} has {stored.nbytes} bytes, its data_offsets say {offsets[1] - offsets[0]}",
    )
    return stored


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _json(path: Path, data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        require(len(out) == len(pairs), f"{path}: a name stands twice in its JSON")
        return out

    try:
        return json.loads(data.decode(), object_pairs_hook=unique)
    except ConfigError:
        raise
    except (ValueError, RecursionError):
        what = "is" if path.suffix == ".json" else "its header is"
        raise ConfigError(f"{path}: {what} not JSON") from None


def _few(names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(names[:count]) or "nothing") + more


# Writing.


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written: shape and dtype are known at once, ``make`` is called when its turn comes."""

    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


def write_folder(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Planned],
    *,
    shard_size: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes ``model.safetensors``, or shards and their index if that would be larger than ``shard_size`` bytes.

    Args:
      folder: exists; files of these names in it are overwritten (see `jaxlm.interop.replace`).
      tensors: name -> tensor, made one after the other in this order (within a file, wider dtypes first: so every
        tensor is aligned).
      shard_size: of the tensors in one file; a tensor larger than that has a file of its own.
      metadata: strings kept in each header; ``{"format": "pt"}`` by default, which transformers asks for.

    Returns the files with tensors. Raises `ConfigError` for a dtype that safetensors does not have, nothing to write,
    a shard size that is not positive, or a disk that takes no more.
    """
    require(tensors, "there are no tensors to write")
    require(shard_size >= 1, f"shard_size: expected a positive number of bytes, got {shard_size}")
    for name, tensor in tensors.items():
        known = ", ".join(str(dtype) for dtype in _CODES)
        require(
            jnp.dtype(tensor.dtype) in _CODES, f"tensor {name}: dtype {tensor.dtype} cannot be written; can: {known}"
        )
    shards = _shards(tensors, shard_size)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    files = [Path(folder) / name for name in names]
    try:
        for file, shard in zip(files, shards, strict=True):
            _write_file(file, shard, {"format": "pt"} if metadata is None else metadata)
        if count > 1:
            weight_map = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
            index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
            (Path(folder) / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return files


def _shards(tensors: Mapping[str, Planned], shard_size: int) -> list[dict[str, Planned]]:
    shards: list[dict[str, Planned]] = []
    room = -1
    for name, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append({})
            room = shard_size
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def _write_file(path: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str]) -> None:
    ordered = sorted(tensors.items(), key=lambda item: -jnp.dtype(item[1].dtype).itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        code = _CODES[jnp.dtype(tensor.dtype)]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in ordered:
            array = np.asarray(tensor.make())
            made, planned = (array.shape, array.dtype.name), (tuple(tensor.shape), jnp.dtype(tensor.dtype).name)
            if made != planned:
                raise ValueError(f"tensor {name}: planned as {planned}, made as {made}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
