"""The docstrings of Python source: English prose that every computer with Python has."""

from __future__ import annotations

import ast
import threading
from typing import NamedTuple

_PARSING = threading.Lock()  # Python 3.11 counts the depth of a tree in one place for all threads


class Docstring(NamedTuple):
    """A docstring without its indentation, and its lines in the source, counted from 1, both included."""

    first: int
    last: int
    text: str


def docstrings(source: str) -> list[Docstring] | None:
    """Those of the module, its classes and functions, outer ones first; None for what this Python cannot parse."""
    try:
        with _PARSING:
            tree = ast.parse(source)
    except (ValueError, SyntaxError):
        return None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                body = node.body[0]
                found.append(Docstring(body.lineno, body.end_lineno or body.lineno, text))
    return found
