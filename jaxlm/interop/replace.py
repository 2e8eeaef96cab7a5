"""A folder replaced as a whole: what is there is the old one or the new one, whenever the process dies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError


@contextlib.contextmanager
def replace_folder(folder: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yields a new folder to write into, which becomes ``folder`` in one step if the block ends without an error.

        with replace_folder("out", overwrite=True) as new:
            write_folder(new, tensors)

    Everything is flushed to the disk first. Until then ``folder`` is untouched, and an error leaves it so; a process
    that dies leaves a hidden ``.<name>.jaxlm-...`` beside it, which the next call for the same folder removes. Where
    the system cannot swap two folders (not Linux, or some network disks) one is moved aside and the other into its
    place; if the process dies between the two, the next call puts the old one back.

    Raises `ConfigError` if ``folder`` is a file, holds anything without ``overwrite``, is one that the process works
    in, or cannot be written. Not for two writers of one folder at a time: the later one ends the earlier one's attempt.
    """
    target = Path(folder).resolve()
    ours = f".{target.name}.jaxlm-"
    new, old = (target.with_name(f"{ours}{kind}-{uuid.uuid4().hex[:8]}") for kind in ("new", "old"))
    with _writing(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target, ours)
        filled = check_free(folder, overwrite)
        inside = filled and Path.cwd().is_relative_to(target)
        require(not inside, f"{folder} is or contains the current folder, which is not replaced; choose another")
        new.mkdir()
    try:
        yield new
        with _writing(folder):
            _flush(new)
            if filled and not _exchange(new, target):
                target.rename(old)
                new.rename(target)
            elif not filled:
                new.rename(target)
            _sync(target.parent)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def check_free(folder: str | os.PathLike[str], overwrite: bool = False) -> bool:
    """Whether there is anything in ``folder``; `replace_folder` asks it, and who computes for long before writing.

    Raises `ConfigError` if it is a file, or not empty without ``overwrite``.
    """
    path = Path(folder)
    require(path.is_dir() or not path.exists(), f"{folder} is a file; expected a folder, new or empty")
    filled = path.is_dir() and any(path.iterdir())
    require(
        overwrite or not filled,
        f"{folder} is not empty; choose another, or replace it with overwrite=True (--overwrite)",
    )
    return filled


@contextlib.contextmanager
def _writing(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _clean(target: Path, ours: str) -> None:
    """Removes what writers that died have left beside ``target``; puts an old folder back whose new one never came."""
    left = [path for path in target.parent.iterdir() if path.name.startswith(ours)]
    for path in left:
        if path.name.startswith(f"{ours}old-") and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, two: Path) -> bool:
    """Swaps two folders in one step, if the system and the disk can (Linux: renameat2 with RENAME_EXCHANGE)."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and swap(here, os.fsencode(one), here, os.fsencode(two), exchange) == 0


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
