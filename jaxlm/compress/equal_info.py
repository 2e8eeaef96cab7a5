"""Equal-info windows (Lester et al. 2024, Training LLMs over Neurally Compressed Text, arXiv 2404.03626).

Plain arithmetic code cannot be learned: what a bit means depends on all bits before it. Here the coder *and the context
of its model* start anew at every window, and a window takes as many symbols as fit in W bits, padded to W. A window's
value is then a token of W bits (16 is the paper's best), or W / 8 tokens of a byte, and each stands for a fixed text.
Claimed: better perplexity per compute than bytes, worse than a subword tokenizer, in shorter sequences.

Two forms, of exact intervals (see `jaxlm.compress.rational`); a value v is the cell [v / 2^W, (v + 1) / 2^W).

* With counts: the longest prefix of the rest whose interval holds a cell, and the smallest such cell; the number of
  symbols is stored beside it.
* Self-delimiting: a cell *decodes to the longest text whose interval contains it*, and the encoder takes the longest
  prefix that some cell decodes to exactly, with the smallest such cell (one that straddles a boundary between two next
  symbols). Nothing but cells is stored. There may be no parse: with frequencies over a power of two the boundaries fall
  between cells, and the end of a text often has no cell of its own. A prime total avoids most of it.

A symbol surely fits in a window if its probability is at least 2^(1 - W). Learned: nothing here; the model drives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.compress.rational import WHOLE, CoderModel, Frequencies, Interval, descend, steps, table_after
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError

LONGEST_TOKEN = 30  # bits; ids are int32


class Window(NamedTuple):
    """``symbols`` symbols in the cell ``cell``, 0 <= cell < 2^W."""

    symbols: int
    cell: int


def encode_windows(model: CoderModel, symbols: Sequence[int], window_bits: int = 16) -> list[Window]:
    """Equal-info windows of a text, each with its number of symbols (>= 1); ``[]`` for an empty text.

    Args:
      model: frequencies after a prefix *of the window* (`jaxlm.compress.rational.CoderModel`).
      symbols: ints [n] in 0..V-1.
      window_bits: W >= 1.

    Raises `ConfigError` for a symbol that no window can hold, one outside the alphabet, or a zero probability.
    """
    _check_bits(window_bits)
    windows: list[Window] = []
    start = 0
    while start < len(symbols):
        reached = _reached(model, symbols, start, window_bits)
        if not reached:
            raise ConfigError(
                f"symbol {int(symbols[start])} at {start} fits in no window of {window_bits} bits: its probability "
                f"must be at least 2^{1 - window_bits} to be sure of a cell"
            )
        windows.append(Window(len(reached), reached[-1].first_cell(window_bits)))
        start += len(reached)
    return windows


def decode_windows(model: CoderModel, windows: Sequence[tuple[int, int]], window_bits: int = 16) -> list[int]:
    """The symbols of ``(number of symbols, cell)`` windows, the inverse of `encode_windows` with the same model.

    Raises `ConfigError` naming the window whose cell does not hold as many symbols.
    """
    _check_bits(window_bits)
    out: list[int] = []
    for number, (count, cell) in enumerate(windows):
        _check_cell(number, cell, window_bits)
        require(count >= 1, f"window {number}: expected at least one symbol, got {count}")
        found = descend(model, cell, window_bits, count)
        if len(found) < count:
            raise ConfigError(f"window {number}: cell {cell} holds {len(found)} symbols under this model, not {count}")
        out += found
    return out


def encode_self_delimiting(model: CoderModel, symbols: Sequence[int], window_bits: int = 16) -> list[int] | None:
    """The cells of the self-delimiting windows of a text, or ``None`` where the greedy parse comes to an end before it.

    Arguments and errors as for `encode_windows`, but a symbol that fits in no window gives ``None``.
    """
    _check_bits(window_bits)
    cells: list[int] = []
    start = 0
    while start < len(symbols):
        reached = _reached(model, symbols, start, window_bits)
        window = [int(s) for s in symbols[start : start + len(reached)]]
        while window:  # the longest prefix that a cell decodes to exactly
            cell = _straddling(reached[len(window) - 1], table_after(model, window), window_bits)
            if cell is not None:
                cells.append(cell)
                break
            window.pop()
        if not window:
            return None
        start += len(window)
    return cells


def decode_self_delimiting(model: CoderModel, cells: Sequence[int], window_bits: int = 16) -> list[int]:
    """The symbols of self-delimiting windows: each cell gives the longest text whose interval contains it.

    Time and memory grow with the texts that cells hold, so the model must not become ever surer of one text.

    Raises `ConfigError` for a cell that holds no symbol, and for an alphabet of one symbol: no text is the longest.
    """
    _check_bits(window_bits)
    require(
        not cells or len(table_after(model, [])) > 1,
        "self-delimiting windows need at least two symbols: with one, every cell contains texts of any length",
    )
    out: list[int] = []
    for number, cell in enumerate(cells):
        _check_cell(number, cell, window_bits)
        found = descend(model, cell, window_bits, None)
        require(found, f"window {number}: cell {cell} holds no symbol under this model")
        out += found
    return out


def cells_to_tokens(cells: Sequence[int], window_bits: int = 16, token_bits: int = 16) -> NDArray[np.int32]:
    """Windows read as tokens: int32 [n * W / token_bits] in 0..2^token_bits-1, the high bits of a cell first.

    ``token_bits`` is W itself for one token a window, 8 for its bytes, or another divisor of W up to 30.
    Raises `ConfigError` for others, or for a cell outside 0..2^W-1.
    """
    shifts = _shifts(window_bits, token_bits)
    for number, cell in enumerate(cells):
        _check_cell(number, cell, window_bits)
    mask = (1 << token_bits) - 1
    return np.array([cell >> shift & mask for cell in cells for shift in shifts], np.int32)


def tokens_to_cells(tokens: ArrayLike, window_bits: int = 16, token_bits: int = 16) -> list[int]:
    """The inverse of `cells_to_tokens`: n cells. Raises `ConfigError` for ids out of range or a broken last window."""
    shifts = _shifts(window_bits, token_bits)
    ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
    bad = ids[(ids < 0) | (ids >= 1 << token_bits)]
    require(not bad.size, f"token ids of {token_bits} bits are 0..{(1 << token_bits) - 1}, got {bad[:1].tolist()}")
    require(
        len(ids) % len(shifts) == 0,
        f"a window of {window_bits} bits is {len(shifts)} tokens of {token_bits}; {len(ids)} tokens are no such number",
    )
    return [sum(i << s for i, s in zip(row, shifts, strict=True)) for row in ids.reshape(-1, len(shifts)).tolist()]


def _reached(model: CoderModel, symbols: Sequence[int], start: int, bits: int) -> list[Interval]:
    """The intervals of the prefixes of ``symbols[start:]``, as long as they hold a cell."""
    interval, found = WHOLE, []
    for table, symbol in steps(model, symbols, start):
        interval = interval.part(table, symbol)
        if not interval.holds(interval.first_cell(bits), bits):
            break
        found.append(interval)
    return found


def _straddling(interval: Interval, table: Frequencies, bits: int) -> int | None:
    """The smallest cell inside an interval that lies in no next symbol's part of it."""
    cell = interval.first_cell(bits)
    while interval.holds(cell, bits):
        part = interval.part(table, interval.symbol_at(table, cell, bits))
        if not part.holds(cell, bits):
            return cell
        cell = ((part.low + part.width) << bits) // part.scale  # the next one that can straddle holds the part's end
    return None


def _shifts(window_bits: int, token_bits: int) -> range:
    _check_bits(window_bits)
    require(
        1 <= token_bits <= LONGEST_TOKEN and window_bits % token_bits == 0,
        f"token_bits must divide window_bits {window_bits} and be at most {LONGEST_TOKEN}, got {token_bits}",
    )
    return range(window_bits - token_bits, -1, -token_bits)


def _check_bits(window_bits: int) -> None:
    require(window_bits >= 1, f"window_bits must be at least 1, got {window_bits}")


def _check_cell(number: int, cell: int, bits: int) -> None:
    require(0 <= cell < 1 << bits, f"window {number}: cell {cell} is outside 0..{(1 << bits) - 1} of {bits} bits")
