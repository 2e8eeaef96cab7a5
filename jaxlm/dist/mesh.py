"""Device meshes from a few numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from jaxlm.core import compat
from jaxlm.core.config import Spec, require


@dataclasses.dataclass(frozen=True)
class Mesh(Spec):
    """How many devices each kind of parallelism takes; at most one may be -1, meaning all that remain.

    Attributes:
      data: copies of the model, each on its own rows of the batch.
      fsdp: shards of parameters and optimizer state, gathered layer by layer (ZeRO-3); rows are split over it too.
      tensor: shards of heads and hidden units within a layer (Megatron).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def check(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        require(
            all(n == -1 or n > 0 for n in sizes) and sizes.count(-1) <= 1,
            "Mesh: expected positive sizes and at most one -1, "
            f"got data={self.data} fsdp={self.fsdp} tensor={self.tensor}",
        )


def make_mesh(shape: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh with axes ("data", "fsdp", "tensor") over ``devices`` (default: all).

    Raises `ConfigError` if the sizes do not multiply to the number of devices.
    """
    count = len(devices) if devices is not None else jax.device_count()
    sizes = (shape.data, shape.fsdp, shape.tensor)
    known = math.prod(n for n in sizes if n != -1)
    full = tuple(count // known if n == -1 else n for n in sizes)
    require(
        math.prod(full) == count,
        f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} does not fit {count} devices; "
        f"the product must be {count}",
    )
    return compat.make_mesh(full, ("data", "fsdp", "tensor"), devices)
