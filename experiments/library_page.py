"""The entries of docs/library.md: a public name's signature and docstring, as markdown.

A mark names a public name of `jaxlm` (``library: generate``), or something in a module (``library:
jaxlm.model.decoder:forward``), and gets what stands in the code.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm.core.errors import ConfigError, choose

LONGEST = 100  # of a signature on one line, and of a default that is shown
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")


def names() -> list[str]:
    """The public names that have an entry: all but the version."""
    return [name for name in jaxlm.__all__ if not name.startswith("_")]


def block(name: str, root: Path, beside: Path) -> str:
    """The entry of ``name``; no file is read. Raises `ConfigError` for a name that is not there."""
    del root, beside
    module, _, attribute = name.rpartition(":")
    if not module:
        choose("public name", name, names())
        return entry(f"jaxlm.{name}", getattr(jaxlm, name))
    try:
        return entry(f"{module}.{attribute}", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name}: {error}") from None


def entry(name: str, thing: Any) -> str:
    """A heading, the signature and the docstring."""
    return f"### `{name}`\n\n```text\n{signature(name, thing)}\n```\n\n{prose(inspect.getdoc(thing) or '')}"


def signature(name: str, thing: Any) -> str:
    """As it is called, a line an argument where one line does not hold it."""
    last = name.rpartition(".")[2]
    if dataclasses.is_dataclass(thing):
        parts = [
            f"{f.name}: {f.type}{_default(f)}" for f in dataclasses.fields(thing) if f.name not in ("parent", "name")
        ]
        found, end = parts, ""
    elif inspect.isclass(thing):
        return f"class {last}({', '.join(base.__name__ for base in thing.__bases__)})"
    else:
        called = inspect.signature(thing)
        found, end = list(_arguments(called)), f" -> {_spelt(called.return_annotation)}"
    line = f"{last}({', '.join(found)}){end}"
    if len(line) <= LONGEST:
        return line
    return "\n".join([f"{last}(", *(f"    {one}," for one in found), f"){end}"])


def _arguments(called: inspect.Signature) -> Iterator[str]:
    starred = False
    for one in called.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        kind = "" if one.annotation is one.empty else f": {_spelt(one.annotation)}"
        yield one.name + kind + ("" if one.default is one.empty else f" = {_short(one.default)}")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {_short(field.default)}"
    return " = ..." if field.default_factory is not dataclasses.MISSING else ""


def _short(value: Any) -> str:
    if inspect.isroutine(value):  # whose repr has an address
        return value.__name__
    text = repr(value)
    return text if len(text) <= LONGEST // 2 else f"{type(value).__name__}(...)" if text[0].isupper() else "..."


def _spelt(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def prose(doc: str) -> str:
    """A docstring as markdown: its sections as lists, its examples as code."""
    out: list[str] = []
    for paragraph in doc.split("\n\n"):
        lines = paragraph.splitlines()
        if lines and (head := lines[0].rstrip(":")) in SECTIONS and lines[0].endswith(":"):
            told = head in ("Returns", "Yields")
            out.append(
                f"{head}: {_plain(' '.join(x.strip() for x in lines[1:]))}"
                if told
                else f"{head}:\n\n{_listed(lines[1:])}"
            )
        elif lines and all(line.startswith("    ") for line in lines):
            out.append("```text\n" + "\n".join(line[4:] for line in lines) + "\n```")
        else:
            out.append(_plain(paragraph))
    return "\n\n".join(out)


def _listed(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        if line.startswith("   ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    return "\n".join("* " + re.sub(r"^([\w, .*]+): ", r"`\1`: ", _plain(item)) for item in items)


def _plain(text: str) -> str:
    """Text of a docstring in markdown: code in one back tick, and nothing that looks like HTML."""
    return text.replace("``", "`").replace("<", "&lt;") if "`" not in text else _outside_code(text.replace("``", "`"))


def _outside_code(text: str) -> str:
    parts = text.split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))
