"""From a mask to the block map that block-sparse attention walks: static where mask and positions are, else traced."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.mask import Layout, Lowering, Mask, Tile, padded
from pallas_kernels.block_sparse_attention.core import BlockMask
from pallas_kernels.block_sparse_attention.lists import both_ways


def block_map(
    mask: Mask,
    lengths: tuple[int, int],
    blocks: tuple[int, int],
    *,
    positions: tuple[Any, Any] | None = None,
    segment_ids: tuple[Any, Any] | None = None,
) -> BlockMask:
    """The tiles of ``blocks`` that hold a visible pair, and what is visible in each.

    Args:
      mask: which key a query may see.
      lengths: (Lq, Lk), which need not be multiples of the blocks.
      blocks: the shape of a tile.
      positions: int32 [B or 1, Lq] and [B or 1, Lk]; None counts both from 0, the last query on the last key.
      segment_ids: int32 [B, Lq] and [B, Lk]; a query sees keys of its segment, and nobody those of segment 0.

    Returns:
      A `BlockMask`; memory is that of the map, (Lq / block_q) x (Lk / block_k). Its lists are numpy, and as long as the
      longest, if nothing it depends on is a JAX array; else as long as `Mask.most_blocks` promises, or as all keys.

    Raises:
      ConfigError: data of the mask that do not fit the lengths.
    """
    offset = lengths[1] - lengths[0]
    layout = Layout(*blocks, *lengths, positions is None, offset if positions is None else 0)
    if positions is None:
        both = np.arange(lengths[0], dtype=np.int32)[None] + offset, np.arange(lengths[1], dtype=np.int32)[None]
    else:
        both = positions
    to = Lowering(both, layout)
    cells = mask.lower(to)
    some, every = np.True_ & cells.some, np.True_ & cells.every
    shape = np.broadcast_shapes(some.shape, (1, 1, to.q.low.shape[2], to.k.low.shape[3]))
    short = lengths[1] % blocks[1] != 0
    if segment_ids is not None:
        rows, cols = (
            padded(x, n)[:, None] if i == 0 else _filled(x, n)[:, None]
            for i, (x, n) in enumerate(zip(segment_ids, blocks, strict=True))
        )
        q, k = to.query_data(rows), to.key_data(cols)
        some = some & (q.low <= k.high) & (k.low <= q.high) & (k.high > 0)
        every = every & (q.low == q.high) & (k.low == k.high) & (q.low == k.low) & (k.low > 0)
    elif short and positions is not None:
        to.key_data(_filled(np.ones((1, lengths[1]), np.int32), blocks[1])[:, None])
    if short:
        every = every & (np.arange(shape[3]) < shape[3] - 1)
    shape = np.broadcast_shapes(shape, some.shape, every.shape)
    widths = mask.most_blocks(*blocks) if positions is None else None, None  # a bound for neighbours only
    xp: Any = np if all(isinstance(x, np.ndarray | np.bool_) for x in (some, every, *to.flags)) else jnp
    flags = None
    if to.flags:
        shape = np.broadcast_shapes(shape, *(x.shape for x in to.flags))
        flags = sum(xp.broadcast_to(x, shape).astype(np.int32) << i for i, x in enumerate(to.flags))
    rows, columns = both_ways(xp.broadcast_to(some, shape), xp.broadcast_to(every, shape), flags, widths)
    return BlockMask(
        rows=rows,
        columns=columns,
        positions=None if positions is None else to.positions,
        data=tuple(_stacked(x, length) for x, length in zip(to.data, (p.shape[-1] for p in to.positions), strict=True)),
        numbers=tuple(to.numbers),
        see=functools.partial(_see, mask, layout, segment_ids is not None, short),
        block_q=blocks[0],
        block_k=blocks[1],
        length_q=lengths[0],
        length_k=lengths[1],
        offset=layout.offset,
    )


def _see(
    mask: Mask,
    layout: Layout,
    segments: bool,
    short: bool,
    numbers: tuple,
    pos_q: Any,
    pos_k: Any,
    data_q: tuple,
    data_k: tuple,
    kind: Any,
) -> jax.Array:
    """`BlockMask.see`: the mask, within one segment, never the padding behind the keys."""
    tile = Tile(layout, pos_q, pos_k, data_q, data_k, numbers, kind)
    seen = mask.see(tile)
    if segments:
        key = tile.key_data()
        seen = seen & (tile.query_data() == key) & (key != 0)
    elif short and layout.plain:
        seen = seen & (pos_k < layout.length_k)
    elif short:
        seen = seen & (tile.key_data() != 0)
    return seen


def _filled(x: Any, block: int) -> Any:
    """x [..., L] with zeros up to a multiple of ``block``."""
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    return xp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)])


def _stacked(arrays: list[Any], length: int) -> Any:
    """Per-token data [B or 1, H or 1, L] as one array [Bm, Hm, n, L]."""
    if not arrays:
        return np.zeros((1, 1, 0, length), np.int32)
    shape = np.broadcast_shapes(*(x.shape for x in arrays))
    xp: Any = np if all(isinstance(x, np.ndarray) for x in arrays) else jnp
    return xp.stack([xp.broadcast_to(x, shape).astype(np.int32) for x in arrays], axis=2)
