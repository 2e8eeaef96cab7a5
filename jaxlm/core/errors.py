"""One-line errors that name the offender and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting, file, shape or flag that cannot work; the message is one line and says what would."""


def shown(value: object) -> str:
    """``repr(value)`` on one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown(kind: str, name: object, allowed: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table, with the nearest allowed name suggested.

    Args:
      kind: what was looked up, for example ``"position"`` or ``"field of ModelSpec"``.
      name: the name that was given.
      allowed: the names that exist.
    """
    options = sorted(allowed)
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {kind} {shown(name)};{hint} allowed: {', '.join(options) or '(none)'}")


def choose(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Returns ``name`` if it is one of ``allowed``; raises `ConfigError` with a suggestion otherwise."""
    options = list(allowed)
    if name not in options:
        raise unknown(kind, name, options)
    return name
