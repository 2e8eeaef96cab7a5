"""What differs between the supported jax versions and platforms lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh


def make_mesh(shape: tuple[int, ...], names: tuple[str, ...], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with every axis left to the compiler (Auto); the default of `jax.make_mesh` is Explicit."""
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def jit_once(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for what runs once, such as drawing initial values.

    On a CPU its compile time is all that counts: optimization level 1 costs a third of the default for random draws,
    and gives the same bits.
    """
    if jax.default_backend() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 1}
    return jax.jit(function, **options)
