"""Calls whose lists do not fit into a TPU's scalar memory, cut by sequences and key heads into several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.block_sparse_attention.core import Bias, BlockMask, Lists

WORDS = 2 * 4  # bytes of a step in scalar memory


class Parts(NamedTuple):
    """Into how many parts a call is cut along its sequences and its key heads."""

    batch: int
    groups: int


def memory_of(tiles: int, rows: int) -> int:
    """Bytes of scalar memory for the walk of a map of so many tiles; each row may need a step of its own."""
    return (tiles + rows) * WORDS


def parts_of(lists: Lists, most: int, groups: int, memory: int) -> Parts:
    """The fewest parts whose lists, of ``most`` tiles each, take at most ``memory`` bytes; shared ones are not cut."""
    batch, heads, rows, _ = lists.indices.shape
    need = memory_of(most, rows)
    if batch * heads * need <= memory:
        return Parts(1, 1)
    return Parts(batch, 1) if heads * need <= memory else Parts(batch, groups if heads > 1 else 1)


def in_parts(
    run: Callable[..., Any], parts: Parts, arrays: list[jax.Array], mask: BlockMask, bias: Bias | None
) -> list[jax.Array]:
    """The arrays [B, heads, ...] of ``run(arrays, mask, bias)``, called for one part after another.

    Args:
      run: takes arrays, mask and bias of a part and returns a list of arrays [B / batch, heads / groups, ...].
      parts: how a call is cut.
      arrays: [B, heads, ...] each.
      mask, bias: of the whole call.
    """
    if parts == (1, 1):
        return run(arrays, mask, bias)

    def cut(x: Any, lead: int = 2) -> jax.Array:
        """[1 or B, 1 or heads, ...] as [parts, ...]; with ``lead`` 1, the axis of the heads is not there."""
        x = jnp.asarray(x)
        x = x if lead == 2 else x[:, None]
        counts = [n if size > 1 else 1 for n, size in zip(parts, x.shape, strict=False)]
        x = x.reshape(counts[0], x.shape[0] // counts[0], counts[1], x.shape[1] // counts[1], *x.shape[2:])
        x = jnp.broadcast_to(x.swapaxes(1, 2), (*parts, x.shape[1], *x.shape[3:]))
        x = x.reshape(parts.batch * parts.groups, *x.shape[2:])
        return x if lead == 2 else x[:, :, 0]

    sides = jax.tree.map(cut, (mask.rows, mask.columns, mask.data))
    positions = jax.tree.map(lambda x: cut(x, lead=1), mask.positions)
    numbers = None if bias is None else cut(bias.numbers[None])[:, 0]

    def one(part: Any) -> list[jax.Array]:
        arrays, (rows, columns, data), positions, numbers = part
        own = dataclasses.replace(mask, rows=rows, columns=columns, data=data, positions=positions)
        return run(arrays, own, None if bias is None else dataclasses.replace(bias, numbers=numbers))

    def joined(x: jax.Array) -> jax.Array:
        x = x.reshape(*parts, *x.shape[1:]).swapaxes(1, 2)
        return x.reshape(x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], *x.shape[4:])

    return [joined(x) for x in jax.lax.map(one, (list(map(cut, arrays)), sides, positions, numbers))]
