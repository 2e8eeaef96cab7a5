"""A manifest of hashes for a checkpoint folder: what Orbax does not check, checked.

Measured with orbax-checkpoint 0.12.8: one flipped byte in an array file restores as wrong numbers without an error,
and an empty folder counts as the newest step. So a step counts only once its ``manifest.json`` exists, written after
Orbax has committed the arrays, and it is trusted only while every file still has the size and the SHA-256 written
there. The manifest also carries the step's JSON metadata, and its own hash.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class Damaged(Exception):
    """A checkpoint folder that cannot be trusted; the message names the file and what is wrong with it."""


def write_atomically(path: Path, text: str) -> None:
    """Writes ``text`` so that ``path`` holds its old content or all of the new, whenever the process dies."""
    temporary = path.with_name(temporary_name(path.name))
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def temporary_name(name: str) -> str:
    """The name under which `write_atomically` keeps an unfinished file called ``name``."""
    return f".{name}.tmp"


def write_manifest(folder: Path, record: Mapping[str, Any]) -> None:
    """Hashes every file under ``folder`` and writes its manifest, last of all and atomically.

    Args:
      folder: a step that Orbax has committed.
      record: JSON metadata kept with the hashes, returned by `read_manifest` and `verify`.

    Each file is flushed to the disk first, so the manifest never vouches for bytes that a power cut can take back.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        hashes = pool.map(lambda name: _sha256(folder / name, flush=True), names)
        files = {name: [(folder / name).stat().st_size, sha256] for name, sha256 in zip(names, hashes, strict=True)}
    body = json.loads(json.dumps({**record, "files": files}))  # as it will be read: keys are strings
    write_atomically(folder / MANIFEST, json.dumps({"sha256": _sha256_of(body), "body": body}, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The record of a committed step, with ``"files": {name: [bytes, sha256]}``; raises `Damaged` if there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        body, sha256 = manifest["body"], manifest["sha256"]
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing (the save was cut short)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    if _sha256_of(body) != sha256:
        raise Damaged(f"{MANIFEST} does not have the hash it claims")
    return body


def verify(folder: Path, *, hashes: bool = True) -> dict[str, Any]:
    """The record of a step after checking that every file is there with its size and, with ``hashes``, its SHA-256.

    Raises `Damaged` naming the first offender.
    """
    record = read_manifest(folder)
    files: dict[str, tuple[int, str]] = record["files"]
    for name, (size, _) in files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            raise Damaged(f"{name} is missing") from None
        if found != size:
            raise Damaged(f"{name} has {found} bytes, not {size}")
    if hashes:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            try:
                found_hashes = list(pool.map(lambda name: _sha256(folder / name), files))
            except OSError as error:
                raise Damaged(f"{error.filename} cannot be read ({error.strerror})") from None
        for (name, (_, sha256)), found in zip(files.items(), found_hashes, strict=True):
            if found != sha256:
                raise Damaged(f"{name} does not have the hash in {MANIFEST}")
    return record


def _sha256(path: Path, flush: bool = False) -> str:
    with open(path, "rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
