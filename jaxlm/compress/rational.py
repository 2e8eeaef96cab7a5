"""Arithmetic coding in exact rationals (Rissanen 1976; Witten, Neal & Cleary 1987): the reference of the other coders.

A text is a sub-interval of [0, 1): symbol s after a prefix cuts the part [C_s / T, C_{s+1} / T) out of the prefix's
interval, where f_s are the model's integer frequencies, C_s = f_0 + ... + f_{s-1} and T is their sum. A value v of k
bits stands for the cell [v / 2^k, (v + 1) / 2^k), and the code of a text is the smallest k, then the smallest v, whose
cell lies inside the text's interval; so k < ideal bits + 2, with ideal bits = -sum_t log2 p(symbol t). How many symbols
there are is not in the code: the decoder is told.

Nothing is rounded: numbers are Python ints that grow by log2 T bits a symbol, so time grows with the square of the
length. `jaxlm.compress.range_coder` is for long texts, `jaxlm.compress.equal_info` starts anew every few symbols.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import ConfigError, shown


class Frequencies:
    """Integer frequencies of the next symbol with their running sums, checked once.

    Attributes:
      values: f, V ints >= 1; symbol s has probability values[s] / total.
      cumulative: C, V + 1 ints from 0 to total.
      total: the sum T.
    """

    __slots__ = ("cumulative", "total", "values")

    def __init__(self, values: Iterable[int]) -> None:
        """Raises `ConfigError` for no symbols, for what is not an integer, and for a frequency below 1."""
        try:
            self.values = tuple(map(operator.index, values))
        except TypeError:
            raise ConfigError(f"frequencies of a coder are integers, one a symbol, got {shown(values)}") from None
        require(self.values, "frequencies of a coder: expected at least one symbol, got none")
        least = min(self.values)
        if least < 1:
            raise ConfigError(
                f"coder models whose probabilities are zero have no code: symbol {self.values.index(least)} has "
                f"frequency {least}, every symbol needs at least 1 (jaxlm.compress.range_coder.quantise gives it)"
            )
        self.cumulative = (0, *itertools.accumulate(self.values))
        self.total = self.cumulative[-1]

    def __len__(self) -> int:
        return len(self.values)


CoderModel = Callable[[Sequence[int]], Frequencies | Iterable[int]]
"""A model that drives a coder: the symbols so far (int [t]; not to be kept or changed) -> frequencies of the next, [V].

Both sides of a code must get the same integers, so the function may depend on nothing but the prefix. A model that
returns `Frequencies` which it made earlier saves the checks and sums of every step.
"""


@dataclasses.dataclass(frozen=True)
class StaticModel(Spec):
    """The same frequencies whatever came before.

    Attributes:
      frequencies: one int >= 1 for each symbol; `ConfigError` for less.
    """

    frequencies: tuple[int, ...]

    def check(self) -> None:
        _ = self.table

    @functools.cached_property
    def table(self) -> Frequencies:
        return Frequencies(self.frequencies)

    def __call__(self, prefix: Sequence[int]) -> Frequencies:
        return self.table


class Interval(NamedTuple):
    """[low / scale, (low + width) / scale), a part of [0, 1), in ints that are not reduced."""

    low: int
    width: int
    scale: int

    def part(self, table: Frequencies, symbol: int) -> Interval:
        """The sub-interval of a symbol."""
        low = self.low * table.total + self.width * table.cumulative[symbol]
        return Interval(low, self.width * table.values[symbol], self.scale * table.total)

    def first_cell(self, bits: int) -> int:
        """The smallest v with v / 2^bits >= low / scale; its cell is inside if `holds` says so."""
        return -(-(self.low << bits) // self.scale)

    def holds(self, cell: int, bits: int) -> bool:
        """Whether [cell / 2^bits, (cell + 1) / 2^bits) lies inside."""
        low, high = self.low << bits, (self.low + self.width) << bits
        return low <= cell * self.scale and (cell + 1) * self.scale <= high

    def symbol_at(self, table: Frequencies, cell: int, bits: int) -> int:
        """The symbol whose part contains the point cell / 2^bits, which lies in this interval."""
        offset = (cell * self.scale - (self.low << bits)) * table.total // (self.width << bits)
        return bisect.bisect_right(table.cumulative, offset) - 1


WHOLE = Interval(0, 1, 1)


class Code(NamedTuple):
    """``value`` written with ``bits`` bits, most significant first: 0 <= value < 2^bits."""

    bits: int
    value: int


def encode(model: CoderModel, symbols: Sequence[int]) -> Code:
    """The shortest code of a text, of equally short ones the smallest; ``Code(0, 0)`` for an empty text.

    Args:
      model: see `CoderModel`.
      symbols: ints [n] in 0..V-1; ``bytes`` are such a sequence.

    Raises `ConfigError` for a symbol outside the model's alphabet, and what `Frequencies` raises.
    """
    interval = WHOLE
    for table, symbol in steps(model, symbols):
        interval = interval.part(table, symbol)
    bits = max(0, interval.scale.bit_length() - interval.width.bit_length() - 1)  # fewer are wider than the interval
    while not interval.holds(interval.first_cell(bits), bits):
        bits += 1
    return Code(bits, interval.first_cell(bits))


def decode(model: CoderModel, code: Code, length: int) -> list[int]:
    """The ``length`` symbols of a code made by `encode` with the same model.

    Raises `ConfigError` if the code is not that of a text of this length.
    """
    bits, value = code
    require(bits >= 0 and 0 <= value < 1 << bits, f"Code: expected 0 <= value < 2^bits, got {shown(code)}")
    require(length >= 0, f"decode: length must not be negative, got {length}")
    symbols = descend(model, value, bits, length)
    if len(symbols) < length:
        raise ConfigError(f"a code of {bits} bits ends after {len(symbols)} symbols under this model, not {length}")
    return symbols


def ideal_bits(model: CoderModel, symbols: Sequence[int]) -> float:
    """-sum_t log2 p(symbol t), the information of a text in bits. Raises as `encode` does."""
    return math.fsum(math.log2(table.total / table.values[symbol]) for table, symbol in steps(model, symbols))


def steps(model: CoderModel, symbols: Sequence[int], start: int = 0) -> Iterator[tuple[Frequencies, int]]:
    """(frequencies, symbol) for each of ``symbols[start:]``; what stands before ``start`` is no context.

    Raises `ConfigError` for a symbol outside the model's alphabet.
    """
    prefix: list[int] = []
    for at in range(start, len(symbols)):
        table, symbol = table_after(model, prefix), int(symbols[at])
        if not 0 <= symbol < len(table):
            raise ConfigError(f"symbol {symbol} at {at} is outside the coder's alphabet 0..{len(table) - 1}")
        yield table, symbol
        prefix.append(symbol)


def table_after(model: CoderModel, prefix: Sequence[int]) -> Frequencies:
    """What the model says after a prefix, checked."""
    found = model(prefix)
    return found if isinstance(found, Frequencies) else Frequencies(found)


def descend(model: CoderModel, cell: int, bits: int, length: int | None) -> list[int]:
    """The symbols whose nested intervals contain a cell, at most ``length`` of them (``None``: all)."""
    symbols: list[int] = []
    # Where the cell begins in the interval, and how wide the interval is, in units of 1 / (scale 2^bits); the cell is
    # `scale` wide. Kept so, each step multiplies long numbers by short ones only.
    offset, span, scale = cell, 1 << bits, 1
    while length is None or len(symbols) < length:
        table = table_after(model, symbols)
        symbol = bisect.bisect_right(table.cumulative, offset * table.total // span) - 1
        offset, scale = offset * table.total - span * table.cumulative[symbol], scale * table.total
        span *= table.values[symbol]
        if offset + scale > span:
            break
        symbols.append(symbol)
    return symbols
