"""Finite automata over bytes, as tables of numpy: what a regular language is to the decoder."""

from __future__ import annotations

import collections
import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require

DEAD = -1


class States(Protocol):
    """States over bytes, finitely many or not. From every state but `DEAD` some string of the language is reached."""

    @property
    def start(self) -> int:
        """The state before the first byte."""
        ...

    def step(self, state: int, byte: int) -> int:
        """The state after one more byte, `DEAD` if no string of the language goes on so."""
        ...

    def accepts(self, state: int) -> bool:
        """Whether the bytes so far are a string of the language."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dfa:
    """A deterministic finite automaton.

    Attributes:
      table: int32 [S, 256], the next state; `DEAD` where no string of the language goes on so.
      accepting: boolean [S].
      start: the state before the first byte.
    """

    table: NDArray[np.int32]
    accepting: NDArray[np.bool_]
    start: int = 0

    def step(self, state: int, byte: int) -> int:
        return int(self.table[state, byte]) if state != DEAD else DEAD

    def accepts(self, state: int) -> bool:
        return state != DEAD and bool(self.accepting[state])

    def matches(self, data: bytes) -> bool:
        """Whether ``data`` is a string of the language."""
        return self.accepts(run(self, data))


def run(states: States, data: bytes, state: int | None = None) -> int:
    """The state after some bytes, from the start or another state."""
    state = states.start if state is None else state
    for byte in data:
        if state == DEAD:
            return DEAD
        state = states.step(state, byte)
    return state


def reduced(dfa: Dfa, what: str) -> Dfa:
    """The automaton with the fewest states, numbered as breadth-first search meets them.

    States that no string reaches or from which none is accepted are dropped (transitions to them are `DEAD`), and
    those of equal future are one (Moore 1956). Raises `ConfigError`, naming ``what``, if the language is empty.
    """
    table = np.where(alive(dfa.table, dfa.accepting)[dfa.table] & (dfa.table >= 0), dfa.table, DEAD)
    require(alive(dfa.table, dfa.accepting)[dfa.start], f"{what}: no string at all matches it")
    kind = np.unique(dfa.accepting, return_inverse=True)[1].reshape(-1)
    while True:
        after = np.where(table >= 0, kind[table], -1)
        refined = np.unique(np.concatenate([kind[:, None], after], 1), axis=0, return_inverse=True)[1].reshape(-1)
        if refined.max() == kind.max():
            break
        kind = refined
    first = np.unique(kind, return_index=True)[1]  # a member of each class
    table, accepting = np.where(table >= 0, kind[table], DEAD)[first], dfa.accepting[first]
    order = reachable(table, int(kind[dfa.start]))
    number = np.full(len(table) + 1, DEAD)
    number[order] = np.arange(len(order))
    return Dfa(number[table[order]].astype(np.int32), accepting[order])


def alive(table: NDArray[np.integer], accepting: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The states from which an accepting one is reached, boolean [S]; ``table`` [S, symbols] has `DEAD` for none."""
    good = accepting.copy()
    while True:
        more = good | (good[table] & (table >= 0)).any(1)
        if (more == good).all():
            return good
        good = more


def reachable(table: NDArray[np.integer], start: int) -> list[int]:
    """The states that are reached from ``start``, in the order of breadth-first search."""
    found, queue = {start: None}, collections.deque([start])
    while queue:
        after = table[queue.popleft()]
        for state in after[np.sort(np.unique(after, return_index=True)[1])].tolist():
            if state != DEAD and state not in found:
                found[state] = None
                queue.append(state)
    return list(found)


def boundaries(sets: set[frozenset[int]]) -> NDArray[np.int64]:
    """For each byte, int64 [256], the class of bytes that all of ``sets`` treat as they treat it."""
    inside = np.zeros((256, max(len(sets), 1)), bool)
    for column, allowed in enumerate(sets):
        inside[list(allowed), column] = True
    return np.unique(inside, axis=0, return_inverse=True)[1].reshape(-1)
