"""Slots: tables of interchangeable methods, one method a file, imported on first use.

A slot is a package whose ``__init__.py`` holds a dict ``METHODS`` from the registered name to ``"module:Class"`` (the
module relative to the package; families of checkpoints are data, and theirs name an object). Nothing is imported until
a method is asked for by name, so listing names is free and a room's optional dependency costs only those who use it.
"""

from __future__ import annotations

import importlib
from typing import Any

from jaxlm.core.errors import ConfigError, unknown

ROOMS = {
    "position": "jaxlm.position",
    "rotary_scaling": "jaxlm.position.scaling",
    "mixer": "jaxlm.mixer",
    "ffn": "jaxlm.ffn",
    "norm": "jaxlm.norm",
    "mask": "jaxlm.attention",
    "cache": "jaxlm.cache",
    "sequence_edit": "jaxlm.edit",
    "patcher": "jaxlm.model.patcher",
    "objective": "jaxlm.objective",
    "processor": "jaxlm.decode.processors",
    "task": "jaxlm.data.tasks",
    "tokenizer": "jaxlm.tokenize",
    "family": "jaxlm.interop.families",
    "embedding_init": "jaxlm.interop.embedding_init",
}

_EXTRA: dict[tuple[str, str], type] = {}


def methods(slot: str) -> dict[str, str]:
    """The table of a slot: registered name -> ``"module:Class"``. Raises `ConfigError` for an unknown slot."""
    if slot not in ROOMS:
        raise unknown("slot", slot, ROOMS)
    extra = {name: f"{cls.__module__}:{cls.__qualname__}" for (room, name), cls in _EXTRA.items() if room == slot}
    return {**importlib.import_module(ROOMS[slot]).METHODS, **extra}


def get(slot: str, name: str) -> type:
    """The class registered as ``name`` in ``slot``; raises `ConfigError` with a suggestion if there is none."""
    if (slot, name) in _EXTRA:
        return _EXTRA[slot, name]
    table = methods(slot)
    if name not in table:
        raise unknown(slot, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(f"{ROOMS[slot]}.{module}"), attribute)


def register(slot: str, name: str, cls: type) -> type:
    """Adds a method that lives outside the library (a notebook, a study). Built-in methods use the slot's table.

    A class of the same name from the same module takes the place of an earlier one: a notebook's cell is run twice.
    Raises `ConfigError` for a name that another method has.
    """
    if name in methods(slot):
        before = _EXTRA.get((slot, name))
        if before is None or (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"{slot} {name!r} is already registered; choose another name")
    _EXTRA[slot, name] = cls
    return cls


def name_of(slot: str, method: Any) -> str:
    """The registered name of an instance (or class) of a slot; raises `ConfigError` if it has none."""
    cls = method if isinstance(method, type) else type(method)
    for (room, name), extra in _EXTRA.items():
        if room == slot and extra is cls:
            return name
    target = f"{cls.__module__}:{cls.__qualname__}"
    for name, path in methods(slot).items():
        if f"{ROOMS[slot]}.{path}" == target:
            return name
    raise ConfigError(f"{cls.__qualname__} is not a registered {slot}; allowed: {', '.join(methods(slot))}")


def describe(slot: str) -> dict[str, str]:
    """Every registered method of a slot with its paper (this imports them all)."""
    return {name: getattr(get(slot, name), "paper", "") for name in methods(slot)}
