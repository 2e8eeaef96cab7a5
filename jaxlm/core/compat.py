"""Names that move between the supported jax versions live here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh


def make_mesh(shape: tuple[int, ...], names: tuple[str, ...], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with every axis left to the compiler (Auto); the default of `jax.make_mesh` is Explicit."""
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)
