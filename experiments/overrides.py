"""Replacing fields of a frozen configuration by path, as flags write them, and listing and comparing its fields.

Overrides go through `ml_collections.config_flags`, on a mutable twin of the configuration, and the result is built anew
by `from_dict`, which checks it. Three things that config_flags cannot do are done here. It types a flag by the present
value, so an ``int | None`` or an empty tuple could never be given one: here leaves other than strings accept any Python
literal, and the dataclasses judge. A slot whose ``name`` is overridden has other arguments than before: the twin is
given the new method's defaults before the flags below it are read, whatever their order. And its errors name Python
types and attributes: here they name the path, the nearest field and what is allowed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags
from ml_collections import config_dict, config_flags
from ml_collections.config_flags import config_path

from jaxlm.core import registry
from jaxlm.core.config import Spec, from_dict, make, to_dict
from jaxlm.core.errors import ConfigError, unknown

Config = TypeVar("Config", bound=Spec)
Slots = dict[str, Mapping[str, Any]]  # path of a slot -> its field's metadata: the room, and whether it is optional


def override(config: Config, overrides: Sequence[tuple[str, str | None]]) -> Config:
    """A copy of ``config`` with values replaced, checked as if it had been written so.

    Args:
      config: the configuration of the file.
      overrides: pairs of a path (``"model.layers[0].pattern[0].mixer.args.heads"``) and a Python literal or bare
        string; ``None`` switches a boolean on. A slot's own path takes a method's name.

    Raises:
      ConfigError: naming the path, or the field and what it expects.
    """
    twin, slots = _twin(to_dict(config)), slots_of(config)
    arguments: list[str] = []
    # Shallow paths first: a method chosen by one flag decides which fields exist for the flags below it.
    for path, text in sorted(overrides, key=lambda pair: len(re.findall(r"[.\[]", pair[0]))):
        path = _existing(path, twin)
        if text is None:
            if not isinstance(config_path.get_value(path, twin), bool):
                raise ConfigError(f"--config.{path} needs a value: --config.{path}=...")
            text = "true"
        if path in slots and not text.lstrip().startswith("{"):
            path += ".name"
        slot, _, leaf = path.rpartition(".")
        if leaf == "name" and slot in slots:
            _rename(twin, slots, slot, text)
        arguments.append(f"--config.{path}={text}")
    try:
        values = flags.FlagValues()
        argv = ["", *arguments]
        config_flags.DEFINE_config_dict("config", twin, flag_values=values, lock_config=False, sys_argv=argv)
        values(argv)
    except (flags.Error, ValueError, TypeError, LookupError) as error:
        raise ConfigError(str(error).removeprefix("flag ")) from None
    return from_dict(type(config), _plain(twin))


LONGEST = 100  # characters of a value that `diff` prints


def diff(config: Spec) -> list[str]:
    """How a configuration differs from its class's defaults, each line written as the flag that would do it.

    The arguments of a method that is not the default's are compared with that method's own defaults.
    """
    return [
        f"{f'--config.{path}={_short(to_dict(new))}':<40}  (default {_short(to_dict(old))})"
        for path, new, old in _differences(config, type(config)())
    ]


def _differences(new: Any, old: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, new, old) of what differs in two configurations of one class."""
    if dataclasses.is_dataclass(new) and type(new) is type(old):
        for field in dataclasses.fields(new):
            left, right = getattr(new, field.name), getattr(old, field.name)
            below = f"{path}.{field.name}".lstrip(".")
            if "slot" not in field.metadata:
                yield from _differences(left, right, below)
                continue
            if type(left) is not type(right):
                name, before = (to_dict(of)[field.name]["name"] for of in (new, old))
                yield f"{below}.name", name, before
                right = make(field.metadata["slot"], name, optional=field.metadata["optional"])
            yield from _differences(left, right, f"{below}.args")
    elif isinstance(new, tuple) and isinstance(old, tuple) and len(new) == len(old):
        for i, (left, right) in enumerate(zip(new, old, strict=True)):
            yield from _differences(left, right, f"{path}[{i}]")
    elif to_dict(new) != to_dict(old):
        yield path, new, old


def _short(value: Any) -> str:
    """As text; whole lists of models would fill the screen."""
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def leaves(data: Any, slots: Slots, path: str = "") -> Iterator[tuple[str, Any, list[str]]]:
    """(path, value, names the value is one of, if a slot) for every field of a `to_dict` form."""
    if isinstance(data, Mapping):
        for key, item in data.items():
            yield from leaves(item, slots, f"{path}.{key}".lstrip("."))
    elif isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        for i, item in enumerate(data):
            yield from leaves(item, slots, f"{path}[{i}]")
    else:
        slot, _, leaf = path.rpartition(".")
        named = leaf == "name" and slot in slots
        yield path, data, list(registry.methods(slots[slot]["slot"])) if named else []


def _existing(path: str, twin: Any) -> str:
    """``path`` in its one spelling (indices from 0); a `ConfigError` names the first part that does not exist."""
    try:
        parts = config_path.split(path)
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"--config.{path}: a path is written --config.model.layers[0].repeats=3") from None
    spelled, value = "", twin
    for part in parts:
        where = f"--config.{spelled}" if spelled else "--config"
        if isinstance(value, config_dict.ConfigDict):
            if part not in value:
                raise unknown(f"field of {where}", part, value.keys())
            value, spelled = value[part], f"{spelled}.{part}".lstrip(".")
        elif isinstance(value, list) and isinstance(part, int):
            if not -len(value) <= part < len(value):
                raise ConfigError(f"{where}[{part}]: there are {len(value)} elements, counted from 0")
            value, spelled = value[part], f"{spelled}[{part % len(value)}]"
        elif isinstance(value, list):
            raise ConfigError(f"{where} is a list: say which element, {where}[0].{part}=...")
        else:
            raise ConfigError(f"{where} is {value!r}, which has no field {part!r}")
    return spelled


def _rename(twin: Any, slots: Slots, slot: str, name: str) -> None:
    """Puts another method into a slot of the twin, with that method's default arguments."""
    old = config_path.get_value(f"{slot}.name", twin)
    if name == old:
        return
    room, optional = slots[slot]["slot"], slots[slot]["optional"]
    method = make(room, name, optional=optional, where=f"--config.{slot}")
    args = {} if method is None else to_dict(method)
    config_path.set_value(slot, twin, _twin({"name": name, "args": args}))
    for path in [path for path in slots if path.startswith(f"{slot}.")]:
        del slots[path]
    slots |= slots_of(method, f"{slot}.args")
    print(f"note: --config.{slot} is now {name!r}; the arguments of {old!r} are dropped")


def slots_of(value: Any, path: str = "") -> Slots:
    """Every slot inside a configuration (a `Spec`, or a tuple of them)."""
    found: Slots = {}
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            found |= slots_of(item, f"{path}[{i}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            below = f"{path}.{field.name}".lstrip(".")
            if "slot" in field.metadata:
                found[below] = field.metadata
                below += ".args"
            found |= slots_of(getattr(value, field.name), below)
    return found


def _twin(value: Any) -> Any:
    """The mutable twin of a `to_dict` form. References of type ``object`` make config_flags read any literal."""
    if isinstance(value, Mapping):
        return config_dict.ConfigDict({key: _twin(item) for key, item in value.items()})
    if isinstance(value, list):
        value = [_twin(item) if isinstance(item, Mapping) else item for item in value]
    return value if isinstance(value, str) else config_dict.FieldReference(value, field_type=object)


def _plain(value: Any) -> Any:
    if isinstance(value, (config_dict.ConfigDict, dict)):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
