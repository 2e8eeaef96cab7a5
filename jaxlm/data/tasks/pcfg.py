"""A PCFG-style task: nested string functions -> the string they make.

After Hupkes et al. 2020, "Compositionality Decomposed" (PCFG SET), whose function names we keep, in a grammar of our
own:

    expression := unary expression | binary expression , expression | symbol+

Functions are written in front of their arguments and have a fixed arity, so no brackets are needed. Trees are drawn
with a number of binary functions uniform up to half of all, and a function is drawn only from those that keep the
value within ``max_value`` symbols, which stops ``repeat`` from doubling the target with every level.

Length: the functions in the prompt; testing on more is the productivity split of McGill-NLP/length-generalization
(make_pcfg_dataset.py). Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.data.tasks.base import Task, alphabet, require_symbols

Value = list[str]
_UNARY: dict[str, Callable[[Value], Value]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "shift": lambda x: x[1:] + x[:1],
    "swap": lambda x: x if len(x) == 1 else [x[-1], *x[1:-1], x[0]],
    "echo": lambda x: [*x, x[-1]],
    "repeat": lambda x: x + x,
}
_BINARY: dict[str, Callable[[Value, Value], Value]] = {
    "append": lambda x, y: x + y,
    "prepend": lambda x, y: y + x,
    "remove_first": lambda x, y: y,
    "remove_second": lambda x, y: x,
}


@dataclasses.dataclass(frozen=True)
class Pcfg(Task):
    """``append reverse a b , echo c`` -> ``b a c c``; ``max_argument`` and ``max_value`` are counted in symbols."""

    symbols: int = 20
    max_argument: int = 3
    max_value: int = 12

    paper: ClassVar[str] = "Hupkes et al. 2020, Compositionality Decomposed (PCFG SET); the grammar is our own"

    def check(self) -> None:
        super().check()
        require_symbols(self, self.symbols)
        require(
            1 <= self.max_argument <= self.max_value,
            f"Pcfg.max_argument: allowed 1..max_value ({self.max_value}), got {self.max_argument}",
        )

    @property
    def words(self) -> tuple[str, ...]:
        return (*alphabet(self.symbols), ",", *_UNARY, *_BINARY)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        binary = int(rng.integers(_most_binary(length) + 1))
        return self._expression(rng, length - binary, binary)

    def tokens_bound(self, length: int) -> int:
        binary = _most_binary(length)  # each brings a comma and one more argument
        return length + binary + (binary + 1) * self.max_argument + self.max_value + 3

    def _expression(self, rng: np.random.Generator, unary: int, binary: int) -> tuple[list[str], Value]:
        """A random expression of that many functions of each arity, and its value."""
        if unary + binary == 0:
            symbols = alphabet(self.symbols)
            value = [symbols[i] for i in rng.integers(self.symbols, size=rng.integers(1, self.max_argument + 1))]
            return value, value
        if rng.integers(unary + binary) < unary:
            text, x = self._expression(rng, unary - 1, binary)
            fits = [name for name in _UNARY if len(_UNARY[name](x)) <= self.max_value]
            name = fits[rng.integers(len(fits))]
            return [name, *text], _UNARY[name](x)
        left_unary, left_binary = rng.integers((unary + 1, binary)).tolist()
        left, x = self._expression(rng, left_unary, left_binary)
        right, y = self._expression(rng, unary - left_unary, binary - 1 - left_binary)
        fits = [name for name in _BINARY if len(_BINARY[name](x, y)) <= self.max_value]
        name = fits[rng.integers(len(fits))]
        return [name, *left, ",", *right], _BINARY[name](x, y)


def _most_binary(functions: int) -> int:
    return (functions + 1) // 2
