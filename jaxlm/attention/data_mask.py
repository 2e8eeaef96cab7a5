"""Masks that carry data beside positions: documents, chosen tokens, chosen distances, lists of blocks.

The data are written down (tuples, which keep the mask hashable) or arrays, possibly traced: then so are the block maps.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.mask import Cells, Layout, Lowering, Mask, Span, Tile


def positive(mask: Mask, *names: str) -> None:
    """Raises `ConfigError` unless the named fields are positive (or traced)."""
    for name in names:
        value = getattr(mask, name)
        require(
            hasattr(value, "aval") or value > 0,
            f"{type(mask).__name__}.{name}: expected a positive integer, got {value}",
        )


def lookup(table: Any, positions: Any) -> Any:
    """table[..., positions] for a table [n], or [B or 1, H or 1, n] whose leading axes meet those of the positions."""
    xp: Any = np if isinstance(table, np.ndarray) and isinstance(positions, np.ndarray) else jnp
    table, positions = xp.asarray(table), xp.clip(positions, 0, table.shape[-1] - 1)
    if table.ndim == 1:
        return table[positions]
    flat = positions.reshape(*positions.shape[:2], -1)
    lead = np.broadcast_shapes(table.shape[:2], flat.shape[:2])
    found = xp.take_along_axis(
        xp.broadcast_to(table, (*lead, table.shape[-1])), xp.broadcast_to(flat, (*lead, flat.shape[-1])), -1
    )
    return found.reshape(*lead, *positions.shape[2:])


def _table(mask: Mask, name: str, dims: int = 1) -> None:
    """Makes the field ``name`` hashable if it was written down, an int32 array [..., n] of ``dims`` axes or dims + 2
    otherwise; for `check`."""
    value = getattr(mask, name)
    where = f"{type(mask).__name__}.{name}"
    if isinstance(value, (list, tuple)):
        frozen = tuple(tuple(x) if isinstance(x, (list, tuple)) else x for x in value)
        flat = [y for x in frozen for y in (x if isinstance(x, tuple) else (x,))]
        require(
            frozen and all(isinstance(y, int) and not isinstance(y, bool) for y in flat),
            f"{where}: expected integers, got {frozen!r}",
        )
        object.__setattr__(mask, name, frozen)
    elif isinstance(value, (jax.Array, np.ndarray)):
        require(
            value.ndim in (dims, dims + 2) and jnp.issubdtype(value.dtype, jnp.integer),
            f"{where}: expected integers of {dims} axes, or {dims + 2} with [batch, heads] in front, got "
            f"{value.dtype} {tuple(value.shape)}",
        )
    else:
        raise ConfigError(f"{where}: expected integers or an array of them, got {type(value).__name__}")


@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """A query sees the keys of its own document: ``ids[position]`` tells it, [L] or [B, H or 1, L]; 0 is padding."""

    paper: ClassVar[str] = "Krell et al. 2021, Efficient Sequence Packing without Cross-contamination"

    ids: Any = (1,)

    def check(self) -> None:
        _table(self, "ids")

    def _ids(self, positions: Any) -> Any:
        return lookup(self.ids if hasattr(self.ids, "dtype") else np.asarray(self.ids, np.int32), positions)

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self._same(self._ids(pos_q), self._ids(pos_k))

    def _same(self, q: Any, k: Any) -> Any:
        return (q == k) & (k != 0)

    def lower(self, to: Lowering) -> Cells:
        self._check_length(to)
        pos_q, pos_k = to.positions
        return self._known(to, to.query_data(self._ids(pos_q[:, None])), to.key_data(self._ids(pos_k[:, None])))

    def _known(self, to: Lowering, q: Span, k: Span) -> Cells:
        one = (q.low == q.high) & (k.low == k.high) & (q.low == k.low)
        return Cells((q.low <= k.high) & (k.low <= q.high) & (k.high != 0), one & (k.low != 0))

    def see(self, tile: Tile) -> jax.Array:
        return self._same(tile.query_data(), tile.key_data())

    def _check_length(self, to: Lowering) -> None:
        held = self.ids.shape[-1] if hasattr(self.ids, "shape") else len(self.ids)
        require(
            not to.layout.plain or held == to.layout.length_k,
            f"{type(self).__name__}.ids: {held} ids do not fit {to.layout.length_k} keys",
        )


@dataclasses.dataclass(frozen=True)
class Anchor(Segments):
    """A query sees the keys before it of its own document and of document 0, the anchor that all share."""

    paper: ClassVar[str] = (
        "Wang et al. 2024, When Precision Meets Position: BFloat16 Breaks Down RoPE (AnchorAttention)"
    )
    causal: ClassVar[bool] = True

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return super().pointwise(pos_q, pos_k) & (pos_k <= pos_q)

    def _same(self, q: Any, k: Any) -> Any:
        return (q == k) | (k == 0)

    def _known(self, to: Lowering, q: Span, k: Span) -> Cells:
        one = (q.low == q.high) & (k.low == k.high) & (q.low == k.low)
        some = (q.low <= k.high) & (k.low <= q.high) | (k.low == 0)
        before, all_before = to.k.low <= to.q.high, to.k.high <= to.q.low
        return Cells(some & before, (one | (k.high == 0)) & all_before)

    def see(self, tile: Tile) -> jax.Array:
        return super().see(tile) & (tile.k <= tile.q)


@dataclasses.dataclass(frozen=True)
class Globals(Mask):
    """The tokens at ``positions`` ([n], or [B, H or 1, n]) see all (``queries``) and are seen by all (``keys``)."""

    paper: ClassVar[str] = "Beltagy et al. 2020, Longformer (global attention)"

    positions: Any = (0,)
    queries: bool = True
    keys: bool = True

    def check(self) -> None:
        _table(self, "positions")
        require(self.queries or self.keys, "Globals: expected queries or keys, or both")

    def _chosen(self, at: Any) -> Any:
        chosen = self.positions if hasattr(self.positions, "dtype") else np.asarray(self.positions, np.int32)
        if isinstance(at, np.ndarray) and isinstance(chosen, np.ndarray) and chosen.ndim == 1:
            return np.isin(at, chosen)
        chosen = chosen.reshape(*chosen.shape[:-1], *(1,) * (at.ndim - max(chosen.ndim - 1, 0)), -1)
        return (at[..., None] == chosen).any(-1)

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        neither = (pos_q != pos_q) | (pos_k != pos_k)
        return neither | (self.queries & self._chosen(pos_q)) | (self.keys & self._chosen(pos_k))

    def lower(self, to: Lowering) -> Cells:
        some = every = (to.q.low != to.q.low) | (to.k.low != to.k.low)
        if self.queries:
            span = to.query_data(self._chosen(to.positions[0][:, None]).astype(np.int32))
            some, every = some | (span.high > 0), every | (span.low > 0)
        if self.keys:
            span = to.key_data(self._chosen(to.positions[1][:, None]).astype(np.int32))
            some, every = some | (span.high > 0), every | (span.low > 0)
        return Cells(some, every)

    def see(self, tile: Tile) -> jax.Array:
        seen = (tile.q != tile.q) | (tile.k != tile.k)
        if self.queries:
            seen = seen | (tile.query_data() > 0)
        if self.keys:
            seen = seen | (tile.key_data() > 0)
        return seen

    def mean_keys(self, length: int) -> float:
        n = self.positions.shape[-1] if hasattr(self.positions, "shape") else len(self.positions)
        return min(length, 2.0 * n)


def _aligned(size: int, layout: Layout) -> bool:
    """Whether every tile lies in one block of ``size`` x ``size``, so that a flag says all of it."""
    sizes = (layout.block_q, layout.block_k)
    return layout.plain and not (any(size % n for n in sizes) or layout.offset % layout.block_q)


def _any_between(values: Any, low: Any, high: Any) -> Any:
    """Whether one of ``values``, [n] or [B or 1, H or 1, n], lies strictly between low and high, elementwise."""
    if all(isinstance(x, np.ndarray) for x in (values, low, high)) and values.size == values.shape[-1]:
        ordered = np.sort(values, None)
        return np.searchsorted(ordered, high) > np.searchsorted(ordered, low, side="right")

    def one(values: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
        return jnp.searchsorted(values, high) > jnp.searchsorted(values, low, side="right")

    ordered = jnp.sort(jnp.asarray(values), -1)
    if ordered.size == ordered.shape[-1]:
        return one(ordered.reshape(-1), low, high)
    lead = np.broadcast_shapes(ordered.shape[:2], low.shape[:2])
    arrays = (jnp.broadcast_to(x, (*lead, *x.shape[2:])) for x in (ordered, low, high))
    return jax.vmap(jax.vmap(one))(*arrays)


@dataclasses.dataclass(frozen=True)
class Diagonals(Mask):
    """A query sees the keys at the distances ``offsets``, [n] or [B or 1, H or 1, n]; with ``size`` above 1 every block
    of ``size`` x ``size`` pairs that such a diagonal crosses, whole (what MInference's kernel computes)."""

    paper: ClassVar[str] = "Jiang et al. 2024, MInference 1.0 (slash lines)"

    offsets: Any = (0,)
    size: int = 1

    def check(self) -> None:
        positive(self, "size")
        _table(self, "offsets")

    def _array(self) -> Any:
        return self.offsets if hasattr(self.offsets, "dtype") else np.asarray(self.offsets, np.int32)

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        apart = (pos_q // self.size - pos_k // self.size) * self.size
        return _any_between(self._array(), apart - self.size, apart + self.size)

    def lower(self, to: Lowering) -> Cells:
        s, offsets = self.size, self._array()
        low, high = (to.q.low // s - to.k.high // s) * s, (to.q.high // s - to.k.low // s) * s
        some = _any_between(offsets, low - s, high + s)
        if _aligned(s, to.layout):
            to.flag(some)
        else:
            to.number(offsets[None, None] if offsets.ndim == 1 else offsets)
        return Cells(some, some & (low == high))

    def see(self, tile: Tile) -> jax.Array:
        if _aligned(self.size, tile.layout):
            return tile.flag() & (tile.q == tile.q) & (tile.k == tile.k)
        apart = (tile.q // self.size - tile.k // self.size) * self.size
        return _any_between(tile.number(), apart - self.size, apart + self.size)

    def mean_keys(self, length: int) -> float:
        n = self.offsets.shape[-1] if hasattr(self.offsets, "shape") else len(self.offsets)
        return min(length, 2.0 * n * self.size)


@dataclasses.dataclass(frozen=True)
class Blocks(Mask):
    """The queries of each block of ``size`` see whole blocks of keys, by lists.

    ``indices`` are key blocks: a tuple of a tuple for each query block, or int32 [query blocks, n], or [B or 1, H or 1,
    query blocks, n], possibly traced (retrieved, scored); negative ones stand for none.
    """

    paper: ClassVar[str] = "Zaheer et al. 2020, Big Bird (random blocks); Jiang et al. 2024, MInference (block sparse)"

    size: int = 64
    indices: Any = ((0,),)

    def check(self) -> None:
        require(
            isinstance(self.size, int) and self.size > 0, f"Blocks.size: expected a positive integer, got {self.size}"
        )
        _table(self, "indices", dims=2)

    def _array(self) -> Any:
        """int32 [B or 1, H or 1, query blocks, n]."""
        if hasattr(self.indices, "dtype"):
            return self.indices if self.indices.ndim == 4 else self.indices[None, None]
        rows = [row if isinstance(row, tuple) else (row,) for row in self.indices]
        width = max(map(len, rows))
        return np.asarray([(*row, *(-1,) * (width - len(row))) for row in rows], np.int32)[None, None]

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        indices, seen = self._array(), False
        for i in range(indices.shape[-1]):
            seen = seen | (lookup(self._squeezed(indices[..., i]), pos_q // self.size) == pos_k // self.size)
        return jnp.asarray(seen)

    def _squeezed(self, x: Any) -> Any:
        return x[0, 0] if x.shape[:2] == (1, 1) else x

    def lower(self, to: Lowering) -> Cells:
        indices, layout = self._array(), to.layout
        rows, last = indices.shape[2], layout.length_q + layout.offset - 1
        require(
            not layout.plain or rows * self.size > last,
            f"Blocks.indices: {rows} query blocks of {self.size} do not reach position {last}",
        )
        if not _aligned(self.size, layout):
            block = to.positions[0][:, None] // self.size
            for i in range(indices.shape[-1]):
                to.query_data(lookup(self._squeezed(indices[..., i]), block))
            to.key_data(to.positions[1][:, None] // self.size)
            return self._met(to, indices)
        blocks = -(-layout.length_k // self.size)
        at_q = (np.arange(to.q.low.shape[2]) * layout.block_q + layout.offset) // self.size
        at_k = np.arange(to.k.low.shape[3]) * layout.block_k // self.size
        table = _members(indices, blocks)[:, :, np.minimum(at_q, rows - 1)][..., np.minimum(at_k, blocks - 1)]
        to.flag(table)
        return Cells(table, table)

    def _met(self, to: Lowering, indices: Any) -> Cells:
        """Tiles that are not part of a block: those that a list names of a block that the tile's queries are in."""
        layout, reach = to.layout, _touched(to.layout.block_q, self.size)
        if layout.offset % layout.block_q and not isinstance(indices, np.ndarray):
            return super().cells(to.q, to.k)  # tiles that start anywhere may meet more than `most_blocks` promises
        first, last = to.q.low // self.size, to.q.high // self.size
        xp: Any = np if isinstance(first, np.ndarray) else jnp
        block = xp.minimum(first + np.arange(reach), last)
        low, high = (x[..., None, :] // self.size for x in to.k)
        some = (last - first >= reach)[..., None] & (low == low)  # positions far apart: who knows
        for i in range(indices.shape[-1]):
            named = lookup(self._squeezed(indices[..., i]), block)[..., None]
            some = some | ((named >= low) & (named <= high)).any(-2, keepdims=True)
        some = some[..., 0, :]
        return Cells(some, ~(some == some))

    def see(self, tile: Tile) -> jax.Array:
        if _aligned(self.size, tile.layout):
            return tile.flag() & (tile.q == tile.q) & (tile.k == tile.k)
        chosen = [tile.query_data() for _ in range(self._array().shape[-1])]
        block, seen = tile.key_data(), (tile.q != tile.q) | (tile.k != tile.k)
        for x in chosen:
            seen = seen | (x == block)
        return seen

    @property
    def grain(self) -> int:
        return self.size

    def most_blocks(self, queries: int, keys: int) -> int | None:
        return self._array().shape[-1] * _touched(self.size, keys) * _touched(queries, self.size)

    def mean_keys(self, length: int) -> float:
        return min(length, self._array().shape[-1] * self.size)


def _touched(length: int, size: int) -> int:
    """How many blocks of ``size`` an interval of ``length`` touches, if it lies at a multiple of its length."""
    return -(-length // size) + (length % size != 0 and size % length != 0)


def _members(indices: Any, blocks: int) -> Any:
    """Lists [B, H, rows, n] as booleans [B, H, rows, blocks]."""
    if isinstance(indices, np.ndarray):
        table = np.zeros((*indices.shape[:3], blocks + 1), bool)
        np.put_along_axis(table, np.where(indices < 0, blocks, np.minimum(indices, blocks)), True, -1)
        return table[..., :blocks]
    return (indices[..., None] == jnp.arange(blocks)).any(-2)
