"""Device meshes from a few numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from jaxlm.core import compat
from jaxlm.core.config import Spec, require

AXES = ("data", "fsdp", "context", "tensor")  # what talks most lies closest together


@dataclasses.dataclass(frozen=True)
class Mesh(Spec):
    """How many devices each kind of parallelism takes; at most one may be -1, meaning all that remain.

    Attributes:
      data: copies of the model, each on its own rows of the batch.
      fsdp: shards of parameters and optimizer state, gathered layer by layer (ZeRO-3); rows are split over it too.
      tensor: shards of heads and hidden units within a layer (Megatron).
      context: pieces of each row, for linear recurrences (LASP-2, `jaxlm.dist.lasp`).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def check(self) -> None:
        sizes = [getattr(self, axis) for axis in AXES]
        require(
            all(n == -1 or n > 0 for n in sizes) and sizes.count(-1) <= 1,
            f"Mesh: expected positive sizes and at most one -1, got {self.shown()}",
        )

    def shown(self) -> str:
        return " ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)


def make_mesh(shape: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh with axes `AXES` over ``devices`` (default: all).

    Raises `ConfigError` if the sizes do not multiply to the number of devices.
    """
    count = len(devices) if devices is not None else jax.device_count()
    sizes = [getattr(shape, axis) for axis in AXES]
    known = math.prod(n for n in sizes if n != -1)
    full = tuple(count // known if n == -1 else n for n in sizes)
    require(
        math.prod(full) == count,
        f"mesh {shape.shown()} does not fit {count} devices; the product must be {count}",
    )
    return compat.make_mesh(full, AXES, devices)
