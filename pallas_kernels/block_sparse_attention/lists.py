"""Packing of block maps: boolean tables into the lists that schedules walk, and rows into classes of similar length."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_attention.core import Lists


def pack(some: Any, every: Any, flags: Any = None, width: int | None = None) -> Lists:
    """The lists of a block map [Bm, Hm, rows, columns]; numpy in, numpy out, else traced.

    Args:
      some: bool, tiles that hold a visible pair.
      every: bool, tiles of which every pair is visible.
      flags: int32, the mask's own bits of each tile, or None.
      width: the length of the lists of traced maps, at least the largest count; None for the number of columns.
    """
    xp: Any = np if all(isinstance(x, np.ndarray) for x in (some, every)) and not _traced(flags) else jnp
    columns = some.shape[-1]
    counts = some.sum(-1).astype(np.int32)
    if xp is np:
        width = max(1, int(counts.max(initial=0)))
    width = min(width or columns, columns)
    order = xp.argsort(~some, axis=-1, stable=True)[..., :width].astype(np.int32)
    last = xp.take_along_axis(order, xp.maximum(counts - 1, 0)[..., None], -1) * (counts > 0)[..., None]
    indices = xp.where(np.arange(width) < counts[..., None], order, last).astype(np.int32)
    kinds = every.astype(np.int32) if flags is None else every.astype(np.int32) | (flags << 1)
    return Lists(counts, indices, xp.take_along_axis(kinds, indices, -1).astype(np.int32))


def both_ways(some: Any, every: Any, flags: Any = None, widths: tuple[int | None, int | None] = (None, None)) -> Any:
    """The lists of the rows of a block map and those of its columns (`pack`)."""
    turned = [None if x is None else x.swapaxes(-1, -2) for x in (some, every, flags)]
    return pack(some, every, flags, widths[0]), pack(*turned, widths[1])


def length_classes(counts: np.ndarray, most: int = 4) -> list[tuple[np.ndarray, int]]:
    """Rows sorted by the length of their lists into at most ``most`` classes, as (rows, width) pairs.

    Each row pays the width of its class; the cuts make the sum of widths least (dynamic programming over the distinct
    lengths). Rows without an entry are in no class.
    """
    lengths, members = np.unique(counts[counts > 0], return_counts=True)
    n = len(lengths)
    if n == 0:
        return []
    below = np.concatenate(([0], np.cumsum(members)))
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(np.inf, 0)] * n]
    for _ in range(min(most, n)):  # best[c][i]: least padded work of the i shortest lengths in c classes, and the cut
        last = best[-1]
        best.append(
            [(0.0, 0)]
            + [
                min((last[j][0] + float(lengths[i - 1] * (below[i] - below[j])), j) for j in range(i))
                for i in range(1, n + 1)
            ]
        )
    classes, i = [], n
    for level in reversed(best[1:]):
        j = level[i][1]
        if i > j:
            rows = np.flatnonzero((counts > (lengths[j - 1] if j else 0)) & (counts <= lengths[i - 1]))
            classes.append((rows.astype(np.int32), int(lengths[i - 1])))
        i = j
    return classes[::-1]


def _traced(x: Any) -> bool:
    return isinstance(x, jax.Array)
