"""The walk of a TPU grid over the live tiles of a block map.

A grid of rows x longest list would idle through every row that is shorter: half of its steps under a causal mask. So
the lists are strung together, row after row, into one sequence of steps that the grid walks; how many there are may be
traced. A step is two int32 words in scalar memory: its place (three flags, and the row, share and index as bit fields)
and its kind.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_attention.core import Lists

DEAD, FIRST, LAST = 1, 2, 4  # flags of a step: nothing to compute; the first and the last step of its row
FLAGS = 3  # how many there are


class Fields(NamedTuple):
    """How many bits of a place hold the index (low), the share and the row (high)."""

    index: int
    share: int
    row: int

    @classmethod
    def of(cls, rows: int, shares: int, columns: int) -> Fields:
        return cls(*((size - 1).bit_length() for size in (columns, shares, rows)))

    @property
    def bits(self) -> int:
        """Of a whole place; it has to stay below 32."""
        return FLAGS + sum(self)

    def pack(self, flags: Any, row: Any, share: Any, index: Any) -> Any:
        return ((((row << self.share) | share) << self.index) | index) << FLAGS | flags

    def unpack(self, place: Any) -> tuple[Any, Any, Any]:
        """The row, share and index of a place."""
        place = place >> FLAGS
        share = (place >> self.index) & ((1 << self.share) - 1)
        return place >> (self.index + self.share), share, place & ((1 << self.index) - 1)


class Steps(NamedTuple):
    """The steps of every map.

    Attributes:
      places, kinds: int32 [Bm, Hm, n].
      live: how many of the n steps the longest walk takes, an int or a traced int32 scalar.
    """

    places: Any
    kinds: Any
    live: Any


def most_tiles(rows: Lists, columns: Lists) -> int:
    """A bound of the tiles of any one map, from the lists of both directions."""
    if isinstance(rows.counts, np.ndarray):
        return int(rows.counts.sum(-1).max())
    return min(math.prod(lists.indices.shape[2:]) for lists in (rows, columns))


def steps_of(lists: Lists, fields: Fields, most: int, shares: int = 1) -> Steps:
    """Strings the lists of each map together; no map has more than ``most`` tiles.

    With ``shares`` = R, every R maps along Hm fill the same rows (the query heads that share a key head), and make one
    walk that leaves a row when all R are through: Hm becomes Hm / R. A row without any tile has one dead step, for its
    result has to be written. Dead steps name the block of the step before, which is in fast memory already.
    """
    xp: Any = np if all(isinstance(x, np.ndarray) for x in lists) else jnp
    batch, heads, rows, width = lists.indices.shape
    maps, lines = batch * heads // shares, rows * shares

    def by_line(x: Any) -> Any:  # [Bm, Hm, rows, ...] -> [maps, lines or lines * width]
        return xp.moveaxis(x.reshape(maps, shares, rows, -1), 1, 2).reshape(maps, -1)

    def take(table: Any, at: Any) -> Any:
        return xp.take_along_axis(table, at, -1)

    counts, indices, kinds = (by_line(x) for x in lists)
    needed = xp.maximum(counts, np.arange(lines) % shares == 0)
    ends = xp.cumsum(needed, -1, dtype=np.int32)
    live = ends[:, -1].max()
    if xp is np:
        live = int(live)
    length = live if xp is np else min(lines * width, shares * most + rows)
    step = np.broadcast_to(np.arange(length, dtype=np.int32), (maps, length))

    # The line of a step is how many lines have ended by then. Past its walk, a map stays in its last line.
    ended = xp.zeros((maps, length + 1), np.int32)
    where = (np.arange(maps)[:, None], ends)
    if xp is np:
        np.add.at(ended, where, 1)
    else:
        ended = ended.at[where].add(1)
    line = xp.minimum(xp.cumsum(ended[:, :-1], -1, dtype=np.int32), lines - 1)
    inside = step - take(ends - needed, line)
    dead = inside >= take(counts, line)
    source = xp.where(dead, 0, step)  # the last live step so far
    source = np.maximum.accumulate(source, -1) if xp is np else jax.lax.cummax(source, axis=1)
    entry = take(line * width + xp.clip(inside, 0, width - 1), source)

    row, share = line // shares, line % shares
    flags = (
        dead * DEAD | ((inside == 0) & (share == 0)) * FIRST | (take(ends, (row + 1) * shares - 1) == step + 1) * LAST
    )
    places = fields.pack(flags, row, take(share, source), take(indices, entry)).astype(np.int32)
    shape = (batch, heads // shares, -1)
    return Steps(places.reshape(shape), take(kinds, entry).astype(np.int32).reshape(shape), live)
