"""Pictures of masks, for people: text for a terminal, PNG for a page."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from jaxlm.core.config import require
from jaxlm.core.mask import Layout, Lowering, Mask, Tile

MARKS = "·▒█"  # nothing of a cell is visible, part of it, all of it


def show(
    mask: Mask, length: int, *, keys: int | None = None, cells: int = 32, path: str | os.PathLike[str] = ""
) -> str:
    """Draws which key (across) each query (down) sees; row and column 0 are the first positions.

    Args:
      mask: what to draw; of one that differs by row or head, the first.
      length: of the queries; ``keys``: of the keys, None for as many.
      cells: rows of the drawing at most; beyond that each mark stands for a square of positions.
      path: also write a picture there (PNG, PDF or SVG by its ending; needs matplotlib).

    Returns:
      Lines of `MARKS`. No array of length x length is made.
    """
    require(length > 0 and cells > 0, f"show: expected a positive length and cells, got {length} and {cells}")
    keys = keys or length
    block = -(-max(length, keys) // cells)
    kinds = _kinds(mask.head(0) if mask.heads else mask, length, keys, block)
    lines = ["".join(MARKS[kind] for kind in row) for row in kinds]
    title = f"{length} queries x {keys} keys" + (f", a mark for {block} x {block}" if block > 1 else "")
    if path:
        _draw(kinds, title, path)
    return "\n".join([*lines, title])


FINE = 16  # up to here a cell's pairs are looked at one by one


def _kinds(mask: Mask, length: int, keys: int, block: int) -> np.ndarray:
    """0, 1 or 2 for each cell of ``block`` x ``block`` pairs: nothing, part or all of it is visible.

    Of large cells it is told from a finer block map, whose cells say it of themselves; of small ones from the pairs.
    """
    fine = block if block <= FINE else -(-block // FINE)
    layout = Layout(fine, fine, length, keys, True, keys - length)
    at_q, at_k = np.arange(length, dtype=np.int32) + keys - length, np.arange(keys, dtype=np.int32)
    to = Lowering((at_q[None], at_k[None]), layout)
    known = mask.lower(to)
    shape = (1, 1, to.q.low.shape[2], to.k.low.shape[3])
    some, every = (np.broadcast_to(_first(x), shape)[0, 0] for x in known)
    kinds = np.where(every, 2, some.astype(np.int64))
    if fine == block:
        for i, j in zip(*np.nonzero(kinds == 1), strict=True):
            seen = _pairs(mask, to, at_q, at_k, i, j)
            kinds[i, j] = 2 if seen.all() else int(seen.any())
        return kinds
    edges = [np.arange(0, n, block) // fine for n in (length, keys)]
    joined = [f.reduceat(f.reduceat(kinds, edges[0], 0), edges[1], 1) for f in (np.maximum, np.minimum)]
    return np.where(joined[1] == 2, 2, np.minimum(joined[0], 1))


def _pairs(mask: Mask, to: Lowering, at_q: np.ndarray, at_k: np.ndarray, i: int, j: int) -> np.ndarray:
    """What is visible of one tile, as the kernels see it."""
    size = to.layout.block_q
    rows, cols = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
    down = lambda x: np.asarray(x)[rows][: len(at_q[rows])].reshape(1, 1, -1, 1)
    across = lambda x: np.asarray(x)[cols][: len(at_k[cols])].reshape(1, 1, 1, -1)
    tile = Tile(
        to.layout,
        down(at_q),
        across(at_k),
        tuple(down(x[0, 0]) for x in to.data[0]),
        tuple(across(x[0, 0]) for x in to.data[1]),
        tuple(np.asarray(x)[:1, :1] if np.ndim(x) else np.asarray(x) for x in to.numbers),
        sum(int(_first(x)[0, 0, i, j]) << (n + 1) for n, x in enumerate(to.flags)),
    )
    return np.broadcast_to(np.asarray(mask.see(tile)), (1, 1, len(at_q[rows]), len(at_k[cols])))


def _first(x: Any) -> np.ndarray:
    """Of a table [B or 1, H or 1, rows, columns] the first of each."""
    x = np.asarray(x)
    return x[:1, :1] if x.ndim == 4 else x


def _draw(kinds: np.ndarray, title: str, path: str | os.PathLike[str]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4.3), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(kinds, cmap="Blues", vmin=0, vmax=2, interpolation="nearest")
    axes.set(title=title, xlabel="keys", ylabel="queries", xticks=[], yticks=[])
    axes.title.set_fontsize(9)
    figure.savefig(path, dpi=150)
