"""Batches on a mesh: each process makes the rows its own devices hold, and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxlm.core.config import require
from jaxlm.dist.rules import RULES, Rules, sharding


def global_batch(
    mesh: jax.sharding.Mesh | None,
    load: Callable[[slice], Mapping[str, np.ndarray]],
    rows: int,
    rules: Rules = RULES,
) -> dict[str, jax.Array]:
    """The batch of a step, split over the mesh's data and fsdp axes; the same values on any mesh and process count.

    Args:
      mesh: where the batch goes; None for the default device.
      load: the arrays [stop - start, ...] of a slice of the global batch's rows, by name; called once for each slice
        that this process's devices hold (``lambda rows: loader(step, rows)`` for a `jaxlm.data.loader.Loader`).
      rows: of the global batch. If the mesh does not divide them, every device holds all.

    Returns:
      Global arrays [rows, ...].

    Raises:
      ConfigError: ``load`` returns another number of rows than it was asked for.
    """

    def checked(start: int, stop: int) -> Mapping[str, np.ndarray]:
        part = load(slice(start, stop))
        for name, x in part.items():
            require(
                len(x) == stop - start,
                f"batch {name!r}: expected {stop - start} rows for {start}..{stop - 1}, got {len(x)}",
            )
        return part

    if mesh is None:
        return {name: jax.device_put(x) for name, x in checked(0, rows).items()}
    places = sharding(mesh, ("batch",), (rows,), rules)

    def span(index: Any) -> tuple[int, int]:  # the rows of a device's part of any array
        return index[0].indices(rows)[:2]

    wanted = {span(index) for index in places.addressable_devices_indices_map((rows,)).values()}
    parts = {(start, stop): checked(start, stop) for start, stop in sorted(wanted)}

    def assemble(name: str, like: np.ndarray) -> jax.Array:
        shape = (rows, *like.shape[1:])
        return jax.make_array_from_callback(shape, places, lambda index: parts[span(index)][name])

    return {name: assemble(name, x) for name, x in next(iter(parts.values())).items()}
