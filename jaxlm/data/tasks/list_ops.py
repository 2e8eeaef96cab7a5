"""ListOps: the value of nested lists of digits, each with what to take of it.

``[MAX 4 [MIN 2 3 ] 1 ]`` -> ``4``. Operators are MAX, MIN, MED (the median, rounded down) and SM (the sum modulo 10);
Nangia and Bowman 2018; Tay et al. 2021, Long Range Arena, whose expressions also carry parentheses, which its own
tokeniser drops and `evaluate` skips. The generator is our own: it draws trees of a given number of operators.

Length: the operators, of which each stands for a bracket pair and, on average, (2 + arguments) / 2 - 1 more digits.
Claim: S4 has 58 to 60 % on the arena's lists, where attention has 36. Shown by experiments/state_space.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.data.tasks.base import Task

OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(np.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
CLOSE = "]"


def evaluate(words: Iterable[str]) -> int:
    """The value of one expression; parentheses are skipped. Raises `ConfigError` for a word that is none of it."""
    stack: list[tuple[str, list[int]]] = [("", [])]
    for word in words:
        if word in ("(", ")"):
            continue
        if word == CLOSE:
            require(len(stack) > 1 and stack[-1][1], "list_ops.evaluate: a bracket closes an empty list, or none")
            operator, values = stack.pop()
            stack[-1][1].append(OPERATORS[operator](values))
        elif word.isdigit():
            stack[-1][1].append(int(word))
        else:
            choose("list_ops.evaluate: word", word, (*OPERATORS, CLOSE, *"0123456789"))
            stack.append((word, []))
    require(len(stack) == 1 and len(stack[0][1]) == 1, "list_ops.evaluate: expected one whole expression")
    return stack[0][1][0]


@dataclasses.dataclass(frozen=True)
class ListOps(Task):
    """``[MAX 4 [MIN 2 3 ] 1 ]`` -> ``4``.

    Attributes:
      depth: operators within each other, at most.
      arguments: of an operator, at most; 2 at least.
    """

    paper: ClassVar[str] = "Nangia and Bowman 2018, ListOps: A Diagnostic Dataset for Latent Tree Learning"

    depth: int = 10
    arguments: int = 5

    def check(self) -> None:
        super().check()
        require(self.arguments >= 2, f"ListOps.arguments: allowed 2 or more, got {self.arguments}")
        require(self.depth >= 1, f"ListOps.depth: expected a positive integer, got {self.depth}")
        most = max(self.train_lengths[1], self.eval_lengths[1])
        require(
            self._room(self.depth) >= most,
            f"ListOps.depth: {self.depth} levels of {self.arguments} arguments hold {self._room(self.depth)} operators"
            f", and lengths go to {most}",
        )

    @property
    def words(self) -> tuple[str, ...]:
        return (*"0123456789", *OPERATORS, CLOSE)

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        prompt = self._tree(rng, length, self.depth)
        return prompt, [str(evaluate(prompt))]

    def tokens_bound(self, length: int) -> int:
        # Each operator brings two brackets and turns one argument into as many as there may be.
        return length * (2 + self.arguments - 1) + 1 + 4

    def _room(self, depth: int) -> int:
        """The most operators in a tree of that depth."""
        return sum(self.arguments**level for level in range(depth))

    def _tree(self, rng: np.random.Generator, operators: int, depth: int) -> list[str]:
        """A tree of that many operators, not deeper than ``depth``."""
        if operators == 0:
            return [str(rng.integers(10))]
        rest, room = operators - 1, self._room(depth - 1)
        fewest = max(2, -(-rest // room) if room else 2)
        shares = np.zeros(int(rng.integers(fewest, self.arguments + 1)), np.int64)
        for _ in range(rest):  # each to one of the arguments that have room
            free = np.flatnonzero(shares < room)
            shares[free[rng.integers(len(free))]] += 1
        names = tuple(OPERATORS)
        children = [word for share in shares.tolist() for word in self._tree(rng, share, depth - 1)]
        return [names[rng.integers(len(names))], *children, CLOSE]
