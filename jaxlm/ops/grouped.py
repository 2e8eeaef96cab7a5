"""Products of rows with one weight per group, the rows sorted by group: the matmul of a mixture of experts.

`jax.lax.ragged_dot` does it where XLA has a kernel for it. On a CPU it has none and multiplies every row by every
group's weight, so there a loop takes the rows in blocks of one group each. Blocks run in order, so one that reaches
into the next group's rows is overwritten by that group's own.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

LARGEST_BLOCK = 128


def grouped_dense(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """x [M, D] times weight [E, D, *out], each row by its group's -> [M, *out] of x's dtype.

    Args:
      x: rows sorted by group.
      sizes: int32 [E], how many rows each group has. Rows beyond their sum give 0.
    """
    flat = weight.reshape(*weight.shape[:2], math.prod(weight.shape[2:])).astype(x.dtype)
    return _product(x, flat, sizes).reshape(x.shape[0], *weight.shape[2:])


@jax.custom_vjp
def _product(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """x [M, D], weight [E, D, F] -> [M, F]."""
    out: Any = jax.lax.platform_dependent(x, weight, sizes, cpu=_product_on_cpu, default=jax.lax.ragged_dot)
    return jnp.where((jnp.arange(x.shape[0]) < sizes.sum())[:, None], out, 0)


@jax.custom_vjp
def _outer(x: jax.Array, g: jax.Array, sizes: jax.Array) -> jax.Array:
    """For each group the sum over its rows of x_i g_j: [M, D], [M, F] -> [E, D, F]."""
    return jax.lax.platform_dependent(x, g, sizes, cpu=_outer_on_cpu, default=_outer_of_xla)


# Each is the other's gradient.
_product.defvjp(
    lambda x, weight, sizes: (_product(x, weight, sizes), (x, weight, sizes)),
    lambda saved, g: (_product(g, saved[1].swapaxes(1, 2), saved[2]), _outer(saved[0], g, saved[2]), None),
)
_outer.defvjp(
    lambda x, g, sizes: (_outer(x, g, sizes), (x, g, sizes)),
    lambda saved, dw: (_product(saved[1], dw.swapaxes(1, 2), saved[2]), _product(saved[0], dw, saved[2]), None),
)


def _outer_of_xla(x: jax.Array, g: jax.Array, sizes: jax.Array) -> jax.Array:
    weight = jax.ShapeDtypeStruct((sizes.shape[0], x.shape[1], g.shape[1]), x.dtype)
    return jax.linear_transpose(lambda w: jax.lax.ragged_dot(x, w, sizes), weight)(g)[0]


def _blocks(rows: int, sizes: jax.Array) -> tuple[int, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Cuts the groups into blocks: their size, and per block its first row, its group and its group's last row + 1.

    The last of the five is how many blocks there are, which depends on the data; the arrays have room for the most.
    """
    groups = sizes.shape[0]
    size = min(LARGEST_BLOCK, max(1, rows // groups))
    counts = (sizes + size - 1) // size
    ends, stops = jnp.cumsum(counts), jnp.cumsum(sizes)
    number = jnp.arange(rows // size + groups)
    group = jnp.minimum(jnp.searchsorted(ends, number, side="right"), groups - 1)
    first = (stops - sizes)[group] + (number - (ends - counts)[group]) * size
    return size, first, group, stops[group], ends[-1]


def _product_on_cpu(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    size, first, group, _, count = _blocks(x.shape[0], sizes)
    padded = jnp.pad(x, ((0, size), (0, 0)))

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(padded, first[i], size)
        return jax.lax.dynamic_update_slice_in_dim(out, block @ weight[group[i]], first[i], 0)

    return jax.lax.fori_loop(0, count, body, jnp.zeros((padded.shape[0], weight.shape[2]), x.dtype))[: x.shape[0]]


def _outer_on_cpu(x: jax.Array, g: jax.Array, sizes: jax.Array) -> jax.Array:
    size, first, group, stop, count = _blocks(x.shape[0], sizes)
    pad = functools.partial(jnp.pad, pad_width=((0, size), (0, 0)))
    x, g = pad(x), pad(g)

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        mine = (first[i] + jnp.arange(size) < stop[i])[:, None]
        left = jnp.where(mine, jax.lax.dynamic_slice_in_dim(x, first[i], size), 0)
        one = left.T @ jax.lax.dynamic_slice_in_dim(g, first[i], size)
        return jax.lax.dynamic_update_index_in_dim(total, total[group[i]] + one, group[i], 0)

    return jax.lax.fori_loop(0, count, body, jnp.zeros((sizes.shape[0], x.shape[1], g.shape[1]), x.dtype))
