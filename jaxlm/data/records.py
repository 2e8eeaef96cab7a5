"""One file into its documents: plain text, JSON lines, parquet rows; gzip and zstd are unpacked on the way.

A JSON line or parquet row gives one field of text, or ``"prompt"`` and ``"completion"``. Every fault is a `ConfigError`
of one line that names the file, and the line or row in it.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError

BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Document:
    """One document, in bytes: ``text`` is learned, ``prompt`` (possibly empty) comes before it and is only read."""

    name: str
    text: bytes
    prompt: bytes = b""


def documents(name: str, path: Path, *, field: str, binary: bool) -> Iterator[Document]:
    """The documents of one file, its kind told by its suffix; ``name`` is what messages call it.

    Args:
      name: the file as the user knows it.
      path: where it is.
      field: the JSON field or parquet column of the text.
      binary: take any bytes; otherwise the text must be UTF-8.
    """
    kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    kind = kinds[-1] if kinds else ""
    if kind == ".parquet":
        for number, row in enumerate(_parquet_rows(name, path, field), 1):
            yield _document(f"{name}:{number}", row, field, binary)
    elif kind in (".jsonl", ".ndjson"):
        for number, line in enumerate(_load(name, path).removeprefix(BOM).split(b"\n"), 1):
            if line.strip():
                yield _document(f"{name}:{number}", _json(f"{name}:{number}", line, binary), field, binary)
    else:
        yield Document(name, _checked(name, _load(name, path), binary))


def _load(name: str, path: Path) -> bytes:
    """The unpacked bytes of a file."""
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{name}: damaged gzip file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    return _unzstd(name, data) if path.suffix.lower() == ".zst" else data


def _unzstd(name: str, data: bytes) -> bytes:
    zstandard = _extra("zstandard", name)
    out = []
    while data:  # frame by frame: zstandard's own readers take a frame that is cut off for the end of the file
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            out.append(frame.decompress(data))
        except zstandard.ZstdError as error:
            raise ConfigError(f"{name}: damaged zstd file: {error}") from None
        if not frame.eof:
            raise ConfigError(f"{name}: damaged zstd file: it ends in the middle of a frame")
        data = frame.unused_data
    return b"".join(out)


def _parquet_rows(name: str, path: Path, field: str) -> Iterator[dict[str, Any]]:
    parquet = _extra("pyarrow.parquet", name)
    try:
        with parquet.ParquetFile(path) as file:
            columns = _wanted(name, file.schema_arrow.names, field)
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
        raise ConfigError(f"{name}: cannot be read as parquet: {_one_line(error)}") from None


def _json(where: str, line: bytes, binary: bool) -> Any:
    try:
        return json.loads(line.decode("utf-8", "surrogateescape" if binary else "strict"))
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from None
    except ValueError as error:
        raise ConfigError(f"{where}: not a JSON value: {_one_line(error)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not a JSON value that can be read: nested too deeply") from None


def _document(where: str, row: Any, field: str, binary: bool) -> Document:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(row).__name__}")
    *prompt, text = [_value(f"{where}: field {name!r}", row[name], binary) for name in _wanted(where, list(row), field)]
    return Document(where, text, *prompt)


def _wanted(where: str, names: list[str], field: str) -> list[str]:
    """The fields to take: the text, else prompt and completion."""
    if field in names:
        return [field]
    if {"prompt", "completion"} <= set(names):
        return ["prompt", "completion"]
    there = ", ".join(names) or "(none)"
    raise ConfigError(f"{where}: no field {field!r}, nor prompt and completion; the fields there: {there}")


def _value(where: str, value: Any, binary: bool) -> bytes:
    if isinstance(value, bytes):
        return _checked(where, value, binary)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: expected text, got {type(value).__name__}")
    try:
        return value.encode("utf-8", "surrogateescape" if binary else "strict")
    except UnicodeEncodeError as error:
        if binary:  # half of a surrogate pair, written as a JSON escape
            return value.encode("utf-8", "surrogatepass")
        at = f"lone surrogate at character {error.start}"
        raise ConfigError(f"{where}: not Unicode text ({at}); binary=True takes it") from None


def _checked(where: str, data: bytes, binary: bool) -> bytes:
    if not binary:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error) from None
    return data


def _not_utf8(where: str, error: UnicodeDecodeError) -> ConfigError:
    byte = error.object[error.start]
    return ConfigError(f"{where}: not UTF-8 at byte {error.start} (0x{byte:02x}); binary=True takes any bytes")


def _extra(module: str, name: str) -> Any:
    """A module of the ``data`` extra, imported when a file needs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"{name}: reading it needs {module.split('.')[0]}: pip install 'jaxlm[data]'") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
