"""What a mask is: which key a query may see, as data, and how it is lowered to tiles.

A mask is a frozen dataclass with `pointwise`, a boolean function of two positions; that alone makes it work. With
`cells` it says which tiles of the score square hold a visible pair, and block-sparse kernels skip the others. Masks
combine by ``&``, ``|`` and ``~``. A mask that needs data beside the positions (ids of documents, chosen blocks)
overrides `lower`, which registers the data with the `Lowering` that walks the tree, and `see`, which takes them out of
the `Tile` in the same order.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import registry
from jaxlm.core.config import Spec


class Span(NamedTuple):
    """The least and greatest position of each block, int arrays; numpy where static."""

    low: Any
    high: Any


class Cells(NamedTuple):
    """What is known of each tile, booleans that broadcast to [B or 1, H or 1, query blocks, key blocks].

    Attributes:
      some: False only if no pair of the tile is visible.
      every: True only if every pair is.
    """

    some: Any
    every: Any


class Layout(NamedTuple):
    """How the score square is cut into tiles.

    Attributes:
      block_q, block_k: the shape of a tile.
      length_q, length_k: the lengths before padding to whole tiles.
      plain: positions are slots: the query in slot i is at position i + offset, the key in slot j at j.
      offset: see ``plain``; 0 otherwise.
    """

    block_q: int
    block_k: int
    length_q: int
    length_k: int
    plain: bool
    offset: int


class Tile:
    """A tile whose pairs a mask is asked about.

    Attributes:
      layout: of the tiles.
      q, k: int32 positions that broadcast against each other.
    """

    def __init__(self, layout: Layout, q: Any, k: Any, data_q: tuple, data_k: tuple, numbers: tuple, kind: Any) -> None:
        self.layout, self.q, self.k, self._kind = layout, q, k, kind
        self._q, self._k, self._numbers = iter(data_q), iter(data_k), iter(numbers)
        self._bit = 1

    def query_data(self) -> Any:
        """The next data of queries that `lower` registered."""
        return next(self._q)

    def key_data(self) -> Any:
        return next(self._k)

    def number(self) -> Any:
        return next(self._numbers)

    def flag(self) -> Any:
        """The next flag, one boolean of the whole tile."""
        found = (self._kind >> self._bit) & 1
        self._bit += 1
        return found != 0


class Lowering:
    """What a mask registers while it is lowered to tiles.

    Attributes:
      layout: of the tiles.
      positions: int32 ([B or 1, padded Lq], [B or 1, padded Lk]).
      q, k: `Span`s of the blocks, [B or 1, 1, query blocks, 1] and [B or 1, 1, 1, key blocks].
    """

    def __init__(self, positions: tuple[Any, Any], layout: Layout) -> None:
        self.layout = layout
        self.positions = padded(positions[0], layout.block_q), padded(positions[1], layout.block_k)
        self.data: tuple[list[Any], list[Any]] = ([], [])
        self.numbers: list[Any] = []
        self.flags: list[Any] = []
        self.q, self.k = (self._span(x[:, None], side) for side, x in enumerate(self.positions))

    def query_data(self, x: Any) -> Span:
        """Registers an integer for each query, [B or 1, H or 1, padded Lq]; returns its span in each block."""
        self.data[0].append(x)
        return self._span(x, 0)

    def key_data(self, x: Any) -> Span:
        """Registers an integer for each key, [B or 1, H or 1, padded Lk]; returns its span in each block."""
        self.data[1].append(x)
        return self._span(x, 1)

    def number(self, x: Any) -> None:
        """Registers a scalar, or an array [B or 1, H or 1, n] (which only back ends that gather can serve)."""
        self.numbers.append(x)

    def flag(self, x: Any) -> None:
        """Registers a boolean of each tile, [B or 1, H or 1, query blocks, key blocks]."""
        self.flags.append(x)

    def _span(self, x: Any, side: int) -> Span:
        blocks = x.reshape(*x.shape[:2], -1, self.layout[side])
        low, high = blocks.min(-1), blocks.max(-1)
        return Span(low[..., None, :], high[..., None, :]) if side else Span(low[..., None], high[..., None])


def padded(x: Any, block: int) -> Any:
    """x [..., L] with its last entry repeated up to a multiple of ``block``."""
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    short = -x.shape[-1] % block
    return xp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)], mode="edge") if short else x


class Mask(Spec):
    """Base of all masks. A mask needs `pointwise`; for block sparsity also `cells`."""

    paper: ClassVar[str] = ""

    @property
    def heads(self) -> int:
        """How many heads it tells apart; 0 if it is one for all."""
        return 0

    def head(self, index: int) -> Mask:
        """What it is at one head."""
        return self

    @property
    def by_order(self) -> bool:
        """It depends on the order of the two positions alone, so that rising positions and slots are the same to it."""
        return False

    @property
    def causal(self) -> bool:
        """True if no key later than the query is ever visible."""
        return False

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        """Boolean visibility, broadcast over two int32 arrays of positions.

        A mask whose data differ by row or head broadcasts them over leading axes [B, H] of the positions.
        """
        raise NotImplementedError

    def mean_keys(self, length: int) -> float:
        """How many keys a query of a row of ``length`` sees on average (an upper bound), to count FLOPs."""
        return (length + 1) / 2 if self.causal else length

    def cells(self, q: Span, k: Span) -> Cells:
        """What is known of the tiles of queries between ``q.low`` and ``q.high`` and keys between ``k.low`` and
        ``k.high``. By default nothing, which is always right and skips nothing."""
        unknown = (q.low == q.low) & (k.low == k.low)
        return Cells(unknown, ~unknown)

    def most_blocks(self, queries: int, keys: int) -> int | None:
        """A bound of the number of tiles ``keys`` wide that ``queries`` neighbouring queries meet, whatever the length,
        which bounds the lists of a traced mask; None if there is no bound."""
        return None

    @property
    def grain(self) -> int:
        """The size of the blocks of tokens that are seen whole or not at all: a tile whose sides divide it needs no
        test. 0 if the mask is not made of blocks."""
        return math.gcd(*(part.grain for part in self.masks() if part is not self))

    def lower(self, to: Lowering) -> Cells:
        """`cells` over all tiles; registers what `see` will need: by default the fields that are traced."""
        for name in self._traced():
            to.number(getattr(self, name))
        return self.cells(to.q, to.k)

    def see(self, tile: Tile) -> jax.Array:
        """`pointwise` on a tile, from what `lower` registered alone. Pure: reads no traced field of ``self``."""
        names = self._traced()
        if not names:
            return self.pointwise(tile.q, tile.k)
        bare = copy.copy(self)
        for name in names:
            object.__setattr__(bare, name, tile.number())
        return bare.pointwise(tile.q, tile.k)

    def masks(self) -> Iterator[Mask]:
        """This mask and all that it is made of."""
        yield self
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Mask):
                    yield from item.masks()

    def _traced(self) -> list[str]:
        return [f.name for f in dataclasses.fields(self) if isinstance(getattr(self, f.name), jax.Array)]

    def __and__(self, other: Mask) -> Mask:
        return registry.get("mask", "and")(self, other)

    def __or__(self, other: Mask) -> Mask:
        return registry.get("mask", "or")(self, other)

    def __invert__(self) -> Mask:
        return registry.get("mask", "not")(self)
