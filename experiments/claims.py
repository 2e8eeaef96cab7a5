"""What a paper claims, as lines that the results of a study pass or miss: every study's table begins with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Line(NamedTuple):
    """A claim as a line to pass.

    Attributes:
      claim: in words.
      limit: the number; each seed is ``at_least`` or at most that.
      at_least: which of them.
      values: by seed.
      idle: seeds in which a model that the claim is about had not learned its task.
    """

    claim: str
    limit: float
    at_least: bool
    values: Mapping[int, float]
    idle: frozenset[int] = frozenset()

    @property
    def worst(self) -> float:
        return (min if self.at_least else max)(self.values.values())

    @property
    def median(self) -> float:
        return float(np.median(list(self.values.values())))

    @property
    def verdict(self) -> str:
        good = lambda value: value >= self.limit if self.at_least else value <= self.limit
        found = "pass" if good(self.worst) else "pass by median, not by worst" if good(self.median) else "MISS"
        return found + (f"; not converged: seed {', '.join(map(str, sorted(self.idle)))}" if self.idle else "")


def table(claims: Iterable[Line]) -> list[str]:
    """A heading and a line of text each; nothing if there are none."""
    found = []
    for one in claims:
        limit = f"{'>=' if one.at_least else '<='} {one.limit:g}"
        found.append(f"{one.claim:<66} {limit:>9} {one.median:>9.3g} {one.worst:>9.3g}  {one.verdict}")
    return [f"{'line':<66} {'limit':>9} {'median':>9} {'worst':>9}  found", *found] if found else []


def between(
    new: Mapping[int, float], old: Mapping[int, float], how: Callable[[float, float], float] = lambda a, b: a - b
) -> dict[int, float]:
    """By seed, of the seeds that both have."""
    return {seed: how(new[seed], old[seed]) for seed in new if seed in old}
