"""Tokens over states: which tokens may come next, and where each leads, by one walk of a trie of the vocabulary.

A token is allowed in a state iff all its bytes lead somewhere, wherever it begins and ends: in the middle of a
character, over several terminals of a grammar. The end token is allowed in accepting states only.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import shown
from jaxlm.decode.grammar import automaton
from jaxlm.decode.grammar.automaton import DEAD, Dfa, States
from jaxlm.tokenize.base import Tokenizer

Node = tuple[dict[int, "Node"], list[int]]  # by the next byte, and the tokens that end here


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """What the ids of a model mean.

    Attributes:
      token_bytes: of each id; ``b""`` (special tokens, ids that are no token) is never allowed.
      end: the ids that end a text, allowed as such and never as text.
    """

    token_bytes: tuple[bytes, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, end: Sequence[int] | None = None) -> Vocabulary:
        """A tokenizer's vocabulary; it ends where the tokenizer's texts do unless ``end`` says otherwise."""
        return cls(tokenizer.token_bytes, tuple(tokenizer.stop_ids if end is None else end))

    def __post_init__(self) -> None:
        require(self.end, "Vocabulary.end: no end token, so no text could be finished; name the id of one")
        wrong = [token for token in self.end if not 0 <= token < len(self.token_bytes)]
        require(not wrong, f"Vocabulary.end: token {wrong[:1]} is outside the vocabulary of {len(self.token_bytes)}")

    def __len__(self) -> int:
        return len(self.token_bytes)

    @functools.cached_property
    def trie(self) -> Node:
        """The tokens by their bytes."""
        root: Node = ({}, [])
        for token, data in enumerate(self.token_bytes):
            if data and token not in self.end:
                node = root
                for byte in data:
                    node = node[0].setdefault(byte, ({}, []))
                node[1].append(token)
        return root

    def allowed(self, states: States, state: int) -> NDArray[np.bool_]:
        """The tokens that may come next, boolean [V]; none if the state is `DEAD`."""
        out = np.zeros(len(self), bool)
        todo = [(self.trie, state)] if state != DEAD else []
        while todo:
            (children, tokens), at = todo.pop()
            out[tokens] = True
            todo += [(node, after) for byte, node in children.items() if (after := states.step(at, byte)) != DEAD]
        out[list(self.end)] = states.accepts(state)
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """An automaton over tokens. Tokens that lead to the same place from every state share a column.

    Attributes:
      after: int32 [S, C], the next state by class of token; `DEAD` where the token is not allowed. The last state is
        that of an ended text, where only the end token goes on.
      classes: int32 [V], the class of each token.
      start: the state before the first token.
    """

    after: NDArray[np.int32]
    classes: NDArray[np.int32]
    start: int

    def allowed(self, state: int) -> NDArray[np.bool_]:
        """The tokens that may come next, boolean [V]."""
        return self.after[state][self.classes] >= 0

    def step(self, state: int, token: int) -> int:
        return int(self.after[state, self.classes[token]])


def token_table(dfa: Dfa, vocabulary: Vocabulary) -> TokenTable:
    """The automaton over the vocabulary's tokens, all states at once: one walk of the trie.

    Raises `ConfigError` if the tokens lead to a state from which no tokens lead to the end of a string.
    """
    count = len(dfa.table)
    ended, step = count, np.concatenate([dfa.table, np.full((1, 256), DEAD, np.int32)])
    columns: dict[bytes, int] = {}
    classes = np.zeros(len(vocabulary), np.int32)
    kind = lambda column: columns.setdefault(column.astype(np.int32).tobytes(), len(columns))
    classes[:] = kind(np.full(count + 1, DEAD))
    todo = [(vocabulary.trie, np.append(np.arange(count), DEAD))]
    while todo:
        (children, tokens), at = todo.pop()
        if tokens:
            classes[tokens] = kind(at)
        for byte, node in children.items():
            after = step[at, byte]  # of DEAD, the row that was added last
            if (after != DEAD).any():
                todo.append((node, after))
    classes[list(vocabulary.end)] = kind(np.append(np.where(dfa.accepting, ended, DEAD), ended))
    after = np.stack([np.frombuffer(column, np.int32) for column in columns], axis=1)
    order = automaton.reachable(after, dfa.start)
    order = [state for state in order if state != ended] + [ended]
    good = automaton.alive(after, np.arange(count + 1) == ended)
    stuck = [state for state in order if not good[state]]
    if stuck:
        worst = min(stuck, key=lambda state: (after[state] != DEAD).any())  # where no token at all goes on, if there
        text, wanted = _path(dfa, worst), bytes(np.flatnonzero(dfa.table[worst] != DEAD).tolist())
        require(
            False, f"no tokens of the vocabulary lead to an end after {shown(text)}; next is one of {shown(wanted)}"
        )
    number = np.full(count + 2, DEAD, np.int32)
    number[order] = np.arange(len(order))
    return TokenTable(number[after[order]], classes, int(number[dfa.start]))


def _path(dfa: Dfa, target: int) -> bytes:
    """A shortest string that leads to a state."""
    paths, queue = {dfa.start: b""}, collections.deque([dfa.start])
    while target not in paths:
        state = queue.popleft()
        for byte in np.flatnonzero(dfa.table[state] != DEAD).tolist():
            if (after := int(dfa.table[state, byte])) not in paths:
                paths[after] = paths[state] + bytes([byte])
                queue.append(after)
    return paths[target]
