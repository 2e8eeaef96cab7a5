"""A SCAN-style task: a command in a small language -> the actions it asks for.

After Lake and Baroni 2018, "Generalization without Systematicity" (SCAN), in a grammar of our own:

    command := block (after block)*        blocks are carried out last to first
    block   := clause (and clause)*        clauses first to last
    clause  := verb [[opposite | around] (left | right)] [twice | thrice]

``walk left`` turns, then walks; ``opposite`` turns twice first; ``around`` turns and walks four times. Unlike SCAN's, a
command may hold any number of clauses, so every length exists, and "turn" is not a verb.

Length: the actions; testing on longer ones is SCAN's length split (productivity). Clauses are drawn uniformly from the
twelve shapes that still fit. Shown by experiments/length_generalization.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.data.tasks.base import Task, encoded_length

_VERBS = ("walk", "run", "jump", "look")
_SIDES = ("left", "right")
_MANNERS = {"": 1, "side": 2, "opposite": 3, "around": 8}  # the actions of one clause
_TIMES = {"": 1, "twice": 2, "thrice": 3}
# (actions, manner, times), shortest first, so that those which fit are a prefix
_SHAPES = sorted((a * t, manner, times) for manner, a in _MANNERS.items() for times, t in _TIMES.items())

Clause = tuple[str, str, str, str]  # verb, manner, side, times


@dataclasses.dataclass(frozen=True)
class Scan(Task):
    """``run left twice after walk`` -> ``WALK LEFT RUN LEFT RUN``."""

    paper: ClassVar[str] = "Lake and Baroni 2018, Generalization without Systematicity (SCAN); the grammar is our own"

    @property
    def words(self) -> tuple[str, ...]:
        commands = (*_VERBS, *_SIDES, "opposite", "around", "twice", "thrice", "and", "after")
        return (*commands, *(word.upper() for word in _VERBS + _SIDES))

    def sample(self, rng: np.random.Generator, length: int) -> tuple[list[str], list[str]]:
        clauses: list[Clause] = []
        while length > 0:
            fitting = sum(shape[0] <= length for shape in _SHAPES)
            shape, verb, side = rng.integers((fitting, len(_VERBS), len(_SIDES))).tolist()
            actions, manner, times = _SHAPES[shape]
            clauses.append((_VERBS[verb], manner, _SIDES[side], times))
            length -= actions
        joins = ["after" if after else "and" for after in rng.integers(2, size=len(clauses) - 1).tolist()]
        return self._spell(clauses, joins)

    def tokens_bound(self, length: int) -> int:
        # No clause spends more than 2m - 1 words on m actions, and single verbs spend just that.
        return encoded_length(*self._spell([("walk", "", "left", "")] * length, ["and"] * (length - 1)))

    def _spell(self, clauses: list[Clause], joins: list[str]) -> tuple[list[str], list[str]]:
        prompt, blocks = _command(clauses[0]), [_actions(clauses[0])]
        for join, clause in zip(joins, clauses[1:], strict=True):
            prompt += [join, *_command(clause)]
            if join == "after":
                blocks.append([])
            blocks[-1] += _actions(clause)
        return prompt, [action for block in reversed(blocks) for action in block]


def _command(clause: Clause) -> list[str]:
    verb, manner, side, times = clause
    direction = [] if not manner else [side] if manner == "side" else [manner, side]
    return [verb, *direction, *([times] if times else [])]


def _actions(clause: Clause) -> list[str]:
    verb, manner, side, times = clause
    act, turn = verb.upper(), side.upper()
    once = {"": [act], "side": [turn, act], "opposite": [turn, turn, act], "around": [turn, act] * 4}[manner]
    return once * _TIMES[times]
