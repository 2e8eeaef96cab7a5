"""A corpus from one string: files, folders, patterns, or the library that every Python carries with it.

    stdlib:            the ``.py`` files of the running Python's standard library, no tests and nothing installed
    stdlib:tests       the same with its test folders
    stdlib:docstrings  the docstrings of the first, a document each: 1.8 MB of English
    path/to/file       ``.jsonl`` or ``.parquet``, else one document of text; ``.gz`` and ``.zst`` are unpacked
    path/to/folder     every file below it in sorted order, hidden ones left out
    data/**/*.jsonl    every file the pattern matches, in sorted order

A JSON line (or parquet row) gives its field ``"text"``, or ``"prompt"`` and ``"completion"``, where the prompt is read
but not trained on. The standard library is about 12 MB of almost pure ASCII and changes with each Python release, so
every loss is reported with `Corpus.sha256`, and only losses with equal hashes are compared.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from jaxlm.core.errors import ConfigError, choose
from jaxlm.data import records
from jaxlm.data.docstrings import docstrings
from jaxlm.data.records import Document

PARTS = ("train", "validation", "test")
SMALLEST_PIECE = 4  # bytes: a character of UTF-8
PIECES = 200  # of a text that has too few documents to set any aside: 10 are expected in each small part
TEST_FOLDERS = {"test", "tests", "idle_test"}
INSTALLED_FOLDERS = {"site-packages", "dist-packages"}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, and where they came from."""

    source: str
    documents: tuple[Document, ...]

    @functools.cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the texts joined by one newline (where there is a prompt: prompt, zero byte, text)."""
        digest = hashlib.sha256()
        for i, document in enumerate(self.documents):
            digest.update(b"\n" if i else b"")
            digest.update(document.prompt + b"\0" if document.prompt else b"")
            digest.update(document.text)
        return digest.hexdigest()

    @functools.cached_property
    def num_bytes(self) -> int:
        """Bytes of text that are learned: what bits per byte divides by."""
        return sum(len(document.text) for document in self.documents)

    def part(self, name: str) -> Corpus:
        """The documents of ``"train"`` (90 %), ``"validation"`` or ``"test"`` (5 % each), see `part_of`.

        Where whole documents leave nothing to train on or nothing to validate on, as a single long text does, all are
        of pieces instead, cut as by ``chunk`` of `read` at a two-hundredth of the text.

        Raises `ConfigError` if no text falls there even so.
        """
        choose("part of a corpus", name, PARTS)
        if not any(document.text for document in self._parts[name]):
            raise ConfigError(
                f"the {name} part of {self.source} is empty: {self.num_bytes:,} bytes in {len(self.documents)} "
                "documents are too few to set any aside by their hash; give more text, or name a file for each part"
            )
        return Corpus(f"{self.source}[{name}]", self._parts[name])

    @functools.cached_property
    def _parts(self) -> dict[str, tuple[Document, ...]]:
        parts = _by_part(self.documents)
        if all(any(document.text for document in parts[name]) for name in PARTS[:2]):
            return parts
        size = max(self.num_bytes // PIECES, SMALLEST_PIECE)
        return _by_part(tuple(piece for document in self.documents for piece in _cut(document, size)))


def _by_part(documents: tuple[Document, ...]) -> dict[str, tuple[Document, ...]]:
    return {name: tuple(document for document in documents if part_of(document) == name) for name in PARTS}


def part_of(document: Document) -> str:
    """The part a document belongs to, from its contents alone: of 20 hash buckets 0 is validation and 1 is test.

    Equal documents fall into the same part, wherever they lie and whatever else is in the corpus.
    """
    bucket = int.from_bytes(hashlib.sha256(document.prompt + b"\0" + document.text).digest()[:8], "big") % 20
    return {0: "validation", 1: "test"}.get(bucket, "train")


def read(source: str, *, field: str = "text", binary: bool = False, chunk: int = 0) -> Corpus:
    """Reads all documents of a source (see the module) into memory.

    Args:
      source: what to read.
      field: the JSON field or parquet column that holds the text.
      binary: take any bytes; otherwise all text must be UTF-8.
      chunk: cut documents without a prompt into pieces of at most this many bytes (0, or at least 4), after a line end
        where there is one, else between characters.

    Raises:
      ConfigError: nothing there, nothing in it, not readable, not UTF-8, a bad line or a missing field, in one line.
    """
    if chunk < 0 or 0 < chunk < SMALLEST_PIECE:
        raise ConfigError(f"chunk: expected 0 (whole documents) or at least {SMALLEST_PIECE} bytes, got {chunk}")
    if source == "stdlib:docstrings":
        found = list(_docstrings())
    else:
        found = [d for name, path in _files(source) for d in records.documents(name, path, field=field, binary=binary)]
    if not any(document.text for document in found):
        raise ConfigError(f"{source}: no text in it; expected at least one document that is not empty")
    if chunk:
        found = [piece for document in found for piece in _cut(document, chunk)]
    return Corpus(source, tuple(found))


def _files(source: str) -> list[tuple[str, Path]]:
    """The files of a source as (name in messages, path), in the order of their names."""
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "stdlib":
        return _stdlib(rest)
    path = Path(source).expanduser()
    try:
        folder, there = path.is_dir() and source, path.exists() or path.is_symlink()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    if folder:
        found = [(os.path.join(source, name), file) for name, file in _walk(path)]
        if not found:
            raise ConfigError(f"{source}: an empty folder; expected files of text, .jsonl or .parquet")
        return found
    if there and source:
        return [(source, path)]
    if glob.has_magic(source):
        found = [(name, Path(name)) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
        if not found:
            raise ConfigError(f"{source}: no file matches this pattern")
        return found
    raise ConfigError(f"{source or '(empty path)'}: no such file or folder; expected one, a pattern, or 'stdlib:'")


def _stdlib(which: str) -> list[tuple[str, Path]]:
    choose("stdlib corpus", which, ("", "tests", "docstrings"))
    root = Path(sysconfig.get_path("stdlib"))
    skip = INSTALLED_FOLDERS if which else INSTALLED_FOLDERS | TEST_FOLDERS
    found = [(name, path) for name, path in _walk(root, skip) if name.endswith(".py")]
    if not found:
        raise ConfigError(f"stdlib: this Python keeps no .py sources in {root}; name a file or folder instead")
    return found


def _docstrings() -> Iterator[Document]:
    for document in read("stdlib:").documents:
        for found in docstrings(document.text.decode()) or ():
            yield Document(f"{document.name}:{found.first}", found.text.encode("utf-8", "surrogatepass"))


def _walk(root: Path, skip: frozenset[str] | set[str] = frozenset()) -> list[tuple[str, Path]]:
    """Files below a folder as (relative path with slashes, path), sorted; no hidden ones, no folder in ``skip``."""

    def stop(error: OSError) -> None:  # os.walk would pass over a folder it cannot list
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from None

    found = []
    for folder, inner, names in os.walk(root, onerror=stop):
        inner[:] = [name for name in inner if name not in skip and not name.startswith(".")]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        found.extend((path.relative_to(root).as_posix(), path) for path in paths)
    return sorted(found)


def _cut(document: Document, size: int) -> Iterator[Document]:
    """Pieces of at most ``size`` bytes whose concatenation is the document."""
    data, start = document.text, 0
    if len(data) <= size or document.prompt:
        yield document
        return
    while start < len(data):
        stop = min(start + size, len(data))
        if stop < len(data):
            stop = data.rfind(b"\n", start, stop) + 1 or _character_start(data, start, stop)
        yield Document(f"{document.name}@{start}", data[start:stop])
        start = stop


def _character_start(data: bytes, start: int, stop: int) -> int:
    """The last UTF-8 character boundary at or before ``stop``, or ``stop`` itself where the bytes are not UTF-8."""
    for at in range(stop, max(stop - 4, start), -1):
        if data[at] & 0xC0 != 0x80:
            return at
    return stop
