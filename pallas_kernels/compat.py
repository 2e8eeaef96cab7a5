"""jax names that differ between the versions we support, for these kernels."""

from __future__ import annotations

import inspect
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

# Before 0.11 the index is an argument of its own, and required; since then an argument that is deprecated.
_INDEX = {"idx": None} if inspect.signature(plgpu.load).parameters["idx"].default is inspect.Parameter.empty else {}


def load_vector(ref: Any, layout: Any) -> jax.Array:
    """`plgpu.load` of a vector in device memory, with whatever instructions reach it."""
    return plgpu.load(ref, layout=layout, optimized=False, **_INDEX)
