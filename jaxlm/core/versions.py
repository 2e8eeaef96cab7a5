"""The versions that the library runs on, and one line for all others. Nothing here loads jax."""

from __future__ import annotations

import functools
import re
import sys

PYTHON, JAX = (3, 11), (0, 10, 2)  # the oldest
PAIRS = "Python 3.11 and jax 0.10.2, Python 3.12 and jax 0.11.2, Python 3.13 and the newest jax"


def check_python() -> None:
    """Raises `ImportError` in one line if this Python is too old."""
    if sys.version_info[:2] < PYTHON:
        raise ImportError(f"jaxlm does not run on Python {sys.version.split()[0]}; supported pairs: {PAIRS}")


@functools.cache
def check_jax() -> None:
    """Raises `ImportError` in one line if the installed jax is too old, or if there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("jax")
    except PackageNotFoundError:
        raise ImportError(f"jaxlm needs jax, which is not installed; supported pairs: {PAIRS}") from None
    # A development version of a release has its number, and what it will have in it.
    if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < JAX:
        raise ImportError(
            f"jaxlm does not run on jax {found}; supported pairs: {PAIRS} "
            f"(pip install --upgrade jax, and restart Python where jax was loaded)"
        )
