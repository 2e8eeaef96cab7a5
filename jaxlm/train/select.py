"""Choosing parameters by path: glob patterns, and splitting a nested dict in two.

A path is written ``"group_0/block_0/mixer/qkv"``. A pattern is a shell glob over the whole path, in which ``*`` crosses
``/`` too: ``"*/mixer/*"``, ``"group_1/*"``, ``"embed*"``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxlm.core.errors import ConfigError
from jaxlm.core.params import Tree, flatten


def match(patterns: Iterable[str], paths: Iterable[str], what: str) -> set[str]:
    """The paths that match any of the patterns.

    Raises `ConfigError` naming ``what`` if some pattern matches nothing, with the candidates.
    """
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not hits:
            raise ConfigError(f"{what}: no parameter matches {pattern!r}; candidates: {', '.join(paths) or '(none)'}")
        chosen.update(hits)
    return chosen


def split(tree: Tree, keep: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two nested dicts: the leaves whose path ``keep`` accepts, and the others. Branches left empty are dropped."""
    kept: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for path, leaf in flatten(tree):
        *branches, name = path.split("/")
        node = kept if keep(path) else rest
        for branch in branches:
            node = node.setdefault(branch, {})
        node[name] = leaf
    return kept, rest


def join(left: Tree, right: Tree) -> dict[str, Any]:
    """The union of two nested dicts with no path in common: ``join(*split(tree, keep))`` has the leaves of ``tree``."""
    out = dict(left)
    for name, value in right.items():
        if name not in out:
            out[name] = value
        elif isinstance(value, Mapping) and isinstance(out[name], Mapping):
            out[name] = join(out[name], value)
        else:
            raise ValueError(f"both trees have a leaf at {name!r}")
    return out
