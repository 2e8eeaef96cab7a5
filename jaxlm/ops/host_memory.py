"""Tables of rows in the host's memory, which a program on an accelerator writes and reads a few rows at a time.

The work is done by the host (`jax.experimental.compute_on`), so only the rows cross over. A CPU's memory is the host's
already: there the same functions are ordinary scatters and gathers.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.compute_on import compute_on

from pallas_kernels.block_sparse_attention.call import target

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


def is_apart() -> bool:
    """Whether the device that programs are made for has a memory of its own."""
    return target().platform != "cpu"


def to_host(x: jax.Array) -> jax.Array:
    """``x`` in the host's memory."""
    return jax.device_put(x, HOST) if is_apart() else x


def write_pieces(table: jax.Array, rows: jax.Array, columns: jax.Array, values: jax.Array) -> jax.Array:
    """``table`` [R, W] in the host's memory with ``values`` [n, w] at ``rows`` and from ``columns`` on, both int32 [n];
    those beyond R are dropped."""
    places, values = jnp.stack((rows, columns), -1), values.astype(table.dtype)
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0, 1))
    write = functools.partial(lax.scatter, dimension_numbers=numbers, mode=lax.GatherScatterMode.FILL_OR_DROP)
    if not is_apart():
        return write(table, places, values)
    places, values = jax.device_put(places, HOST), jax.device_put(values, HOST)
    with compute_on("device_host"):
        return jax.device_put(write(table, places, values), HOST)


def read_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """The ``rows``, int32 [n], of ``table`` [R, W] in the host's memory, as [n, W] in the device's."""
    if not is_apart():
        return table[rows]
    rows = jax.device_put(rows[:, None], HOST)
    numbers, size = lax.GatherDimensionNumbers((1,), (0,), (0,)), (1, table.shape[1])
    with compute_on("device_host"):
        found = lax.gather(table, rows, numbers, size, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)
    return jax.device_put(found, DEVICE)
