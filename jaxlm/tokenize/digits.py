"""Groups of digits (Singh and Strouse 2024, Tokenization counts, arXiv 2402.14903).

    1234567     left to right in threes: 123 456 7       right to left: 1 234 567

From the right a group is a place value whatever the number's length, and two addends of different lengths line up; the
paper's models fail where from the left they do not. Runs are maximal runs of 0-9; a digit of another script (in
Unicode, Nd) is a group of its own. Leading zeros and decimals are not looked at.
"""

from __future__ import annotations

import re

from jaxlm.core.config import require
from jaxlm.core.errors import choose, shown

DIRECTIONS = ("l2r", "r2l")
_DIGITS = re.compile(r"[0-9]+|\d")


def group_digits(text: str, size: int = 3, direction: str = "l2r") -> list[str]:
    """Cuts the digits of a text into groups of ``size``; what lies between stays whole. The pieces join to ``text``.

    The short group of a run is its last one (``"l2r"``) or its first (``"r2l"``). Raises `ConfigError` for another
    direction and for a size below 1.
    """
    require(size >= 1, f"digits are grouped by 1 or more, not by {size}")
    choose("direction of digit groups", direction, DIRECTIONS)
    pieces, end = [], 0
    for found in _DIGITS.finditer(text):
        start, stop = found.span()
        if start > end:
            pieces.append(text[end:start])
        end = start + (size if direction == "l2r" else (stop - start) % size or size)
        while start < stop:
            pieces.append(text[start : min(end, stop)])
            start, end = end, end + size
        end = stop
    if end < len(text):
        pieces.append(text[end:])
    return pieces


def commas(number: str, size: int = 3) -> str:
    """A run of digits with commas between its groups from the right: ``"1,234,567"``, which any tokenizer then follows.

    Raises `ConfigError` for anything but digits 0-9.
    """
    require(re.fullmatch("[0-9]+", number), f"commas go into a run of digits 0-9, not into {shown(number)}")
    return ",".join(group_digits(number, size, "r2l"))


def carries(a: int, b: int) -> list[int]:
    """The places (0: the ones) at which adding two natural numbers carries into the next place."""
    require(a >= 0 and b >= 0, f"carries are of natural numbers, not of {a} and {b}")
    width = max(len(str(a)), len(str(b)))
    # The lower digits of the sum are smaller than those of an addend exactly where something was carried out of them.
    return [place for place in range(width) if (a + b) % 10 ** (place + 1) < a % 10 ** (place + 1)]
