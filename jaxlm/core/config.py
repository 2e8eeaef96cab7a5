"""Frozen dataclasses that check themselves, and their JSON form.

Every configuration object of the house is a frozen dataclass deriving from `Spec`. On construction each field is
checked against its annotation, and each *slot field* (declared with `slot`, annotated `Any`) accepts a registered name,
a ``{"name", "args"}`` dict, or an object of that slot:

    @dataclasses.dataclass(frozen=True)
    class Attention(Spec):
        heads: int = 8
        position: Any = slot("position", "rotary")

    Attention(position="alibi") == from_dict(Attention, to_dict(Attention(position="alibi")))

A field may hold a traced array in place of a number: that is how per-layer values (a rotary base, a window) reach a
method inside a scan.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.core import registry
from jaxlm.core.errors import ConfigError, shown, unknown


def slot(name: str, default: Any, *, optional: bool = False) -> Any:
    """A dataclass field holding a method of the slot ``name``; if ``optional`` it may be ``None`` (or ``"none"``)."""
    return dataclasses.field(default=default, metadata={"slot": name, "optional": optional})


@dataclasses.dataclass(frozen=True)
class Spec:
    """Base of all configuration objects: coerces slot fields, checks types, then calls `check`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            where = f"{type(self).__name__}.{field.name}"
            if "slot" in field.metadata:
                value = make(field.metadata["slot"], value, optional=field.metadata["optional"], where=where)
            else:
                value = _checked(value, _hints(type(self))[field.name], where)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Raises `ConfigError` for values that fit their types but cannot work. Override per class."""


def require(condition: Any, message: str) -> None:
    """Raises `ConfigError(message)` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def make(room: str, value: Any, *, optional: bool = False, where: str = "") -> Any:
    """An object of the slot ``room`` from a name, a ``{"name", "args"}`` mapping, or the object itself.

    Raises `ConfigError` naming ``where`` if nothing fits.
    """
    try:
        name = value.get("name") if isinstance(value, Mapping) else value
        if optional and (value is None or (isinstance(name, str) and name == "none")):
            return None
        if isinstance(value, str):
            return registry.get(room, value)()
        if isinstance(value, Mapping):
            if set(value) - {"name", "args"} or not isinstance(value.get("name"), str):
                raise ConfigError(f"a {room} is written {{'name': ..., 'args': {{...}}}}, got {shown(dict(value))}")
            return from_dict(registry.get(room, value["name"]), value.get("args") or {})
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            registry.name_of(room, value)  # raises for an object of another slot
            return value
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None
    raise ConfigError(
        f"{where or room}: expected a {room} (name, mapping or object), got {type(value).__name__} {shown(value)}"
    )


def to_dict(value: Any) -> Any:
    """The JSON-ready form of a `Spec` (nested; slot fields as ``{"name", "args"}``; tuples as lists)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if "slot" in field.metadata:
                name = None if item is None else registry.name_of(field.metadata["slot"], item)
                out[field.name] = {"name": name or "none", "args": {} if item is None else to_dict(item)}
            else:
                out[field.name] = to_dict(item)
        return out
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_dict(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def from_dict(cls: type, data: Mapping[str, Any]) -> Any:
    """Builds ``cls`` from the form `to_dict` writes; missing fields take their defaults.

    Raises `ConfigError` for an unknown field (with the nearest one suggested) or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{cls.__name__}: expected a mapping, got {type(data).__name__} {shown(data)}")
    names = [field.name for field in dataclasses.fields(cls)]
    for key in data:
        if key not in names:
            raise unknown(f"field of {cls.__name__}", key, names)
    return cls(**data)


def renewed(cls: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version wrote by `to_dict` of a ``cls``, as this one would: with the defaults of fields that it
    did not have. Keys that are no fields stay; so does everything where ``cls`` cannot be built of it.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    try:
        return {**saved, **to_dict(from_dict(cls, {name: value for name, value in saved.items() if name in names}))}
    except (ConfigError, TypeError):
        return dict(saved)


def differences(new: Any, old: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two `to_dict` forms differ: ``{"model.width": (new, old)}``; a missing leaf reads ``"(absent)"``."""
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        pairs = {
            key: (new.get(key, _ABSENT), old.get(key, _ABSENT)) for key in (*new, *(k for k in old if k not in new))
        }
    elif isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)) and len(new) == len(old):
        pairs = {str(i): pair for i, pair in enumerate(zip(new, old, strict=True))}
    else:
        return {} if new == old and isinstance(new, bool) == isinstance(old, bool) else {path: (new, old)}
    out: dict[str, tuple[Any, Any]] = {}
    for key, (left, right) in pairs.items():
        out |= differences(left, right, f"{path}.{key}" if path else str(key))
    return out


def replace_at(value: Any, path: str, new: Any) -> Any:
    """A copy of a nested `Spec` with the field at a dotted ``path`` replaced (``"mixer.position.base"``).

    Raises `ConfigError` if the path does not exist.
    """
    head, _, rest = path.partition(".")
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    if head not in names:
        raise unknown(f"field of {type(value).__name__}", head, names)
    inner = replace_at(getattr(value, head), rest, new) if rest else new
    spec: Any = value
    return dataclasses.replace(spec, **{head: inner})


def has(value: Any, path: str) -> bool:
    """Whether a nested `Spec` has a field at a dotted ``path``."""
    head, _, rest = path.partition(".")
    if not dataclasses.is_dataclass(value) or head not in {field.name for field in dataclasses.fields(value)}:
        return False
    return not rest or has(getattr(value, head), rest)


_ABSENT = "(absent)"


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """``value`` as ``hint`` asks, or `ConfigError`. Ints pass for floats; lists and mappings become tuples, Specs."""
    if type(value) is hint and hint in (int, float, str, bool):  # most values of long lists
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return value
    if origin in (typing.Union, types.UnionType):
        specs = [option for option in arguments if dataclasses.is_dataclass(option)]
        if isinstance(value, Mapping) and len(specs) == 1:
            return _checked(value, specs[0], where)  # its own error says more than that no option fits
        for option in arguments:
            try:
                return _checked(value, option, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where}: expected {_spell(hint)}, got {type(value).__name__} {shown(value)}")
    if hint is type(None) and value is None:
        return value
    if origin is tuple and isinstance(value, (tuple, list)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_checked(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            return tuple(_checked(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            try:
                return from_dict(hint, value)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
        if isinstance(value, hint):
            return value
    if hint in (int, float) and hasattr(value, "aval"):  # a traced per-layer number
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    raise ConfigError(f"{where}: expected {_spell(hint)}, got {type(value).__name__} {shown(value)}")


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
