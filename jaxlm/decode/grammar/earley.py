"""Context-free grammars as states over bytes: Earley's recogniser (1970) whose item sets are states that can be equal.

An item is what is left of an alternative, and the node to return to when nothing is left. A node is a set of such
items: what goes on when a nonterminal that began here ends (the return stacks of all derivations as a graph). Three
things keep the sets small and let equal futures be the same state:

    nullable symbols are stepped over when they are predicted (Aycock and Horspool 2002), so nothing ends where it began
    the last symbol of an alternative returns where the alternative would return (tail calls, as Leo 1991)
    nodes are named by their content, those of a left-recursive cycle together

So left and right recursion take a bounded number of states, and what needs unboundedly many is nesting: a state is as
deep as its longest chain of nodes. A grammar without nesting is a regular language, and `tabulate` makes its table; of
one with nesting it makes the table to a given depth.

Alternatives that end in no string were left out by `Grammar`, so every item can be finished, and a byte is accepted
exactly where some string of the language goes on with it (the valid prefix property).
"""

from __future__ import annotations

import numpy as np

from jaxlm.core.config import require
from jaxlm.decode.grammar import automaton
from jaxlm.decode.grammar.automaton import DEAD, Dfa
from jaxlm.decode.grammar.context_free import Grammar, Symbol

Suffix = tuple[Symbol, ...]
Item = tuple[Suffix, int]  # what is left, and the node to return to
Open = tuple[Suffix, "int | str"]  # while a set is made, its own nodes are called by their nonterminal
_DONE: Item = ((), DEAD)  # returning here, the whole string has ended


class Recogniser:
    """The states of a grammar over bytes, made as they are asked for and kept (see `automaton.States`)."""

    def __init__(self, grammar: Grammar) -> None:
        self._rules = grammar.rules
        self._nullable = _nullable(grammar)
        sets = {s for options in grammar.rules.values() for option in options for s in option if not isinstance(s, str)}
        self.classes = automaton.boundaries(sets)
        self._numbers: dict[tuple[frozenset[Item], bool], int] = {}
        self._items: list[frozenset[Item]] = []
        self._accepting: list[bool] = []
        self._after: list[dict[int, int]] = []
        self._node_numbers: dict[object, int] = {"end": 0}
        self._nodes: list[frozenset[Item]] = [frozenset([_DONE])]
        self._depths = [0]
        self.start = self._state({((grammar.start,), 0)})

    def __len__(self) -> int:
        """How many states there are so far."""
        return len(self._items)

    def step(self, state: int, byte: int) -> int:
        if state == DEAD:
            return DEAD
        after, kind = self._after[state], int(self.classes[byte])
        if kind not in after:
            moved = {(suffix[1:], node) for suffix, node in self._items[state] if byte in suffix[0]}  # pyright: ignore
            after[kind] = self._state(moved) if moved else DEAD
        return after[kind]

    def accepts(self, state: int) -> bool:
        return state != DEAD and self._accepting[state]

    def depth(self, state: int) -> int:
        """How many alternatives are begun, one inside the other, whose end is still due."""
        return max((self._depths[node] for _, node in self._items[state]), default=0)

    def _state(self, kernel: set[Item]) -> int:
        """The number of the state that follows from some items."""
        todo: list[Open] = list(kernel)
        seen: set[Open] = set(todo)
        scanned: set[Open] = set()
        nodes: dict[str, set[Open]] = {}
        tails: dict[str, set[str]] = {}  # nonterminals whose node has all that another node has
        accepting = False

        def add(suffix: Suffix, node: int | str) -> None:
            if (suffix, node) not in seen:
                seen.add((suffix, node))
                todo.append((suffix, node))

        while todo:
            suffix, node = todo.pop()
            if not suffix:
                if not isinstance(node, str):  # what began here and ended here was stepped over
                    accepting |= _DONE in self._nodes[node]
                    for item in self._nodes[node] - {_DONE}:
                        add(*item)
                continue
            head, rest = suffix[0], suffix[1:]
            if not isinstance(head, str):
                scanned.add((suffix, node))
                continue
            if head not in nodes:
                nodes[head], tails[head] = set(), set()
                for option in self._rules[head]:
                    add(option, head)
            if rest:
                nodes[head].add((rest, node))
            elif isinstance(node, str):
                tails[head].add(node)
            else:
                nodes[head] |= self._nodes[node]
            if head in self._nullable:
                add(rest, node)
        while any(
            more := [(head, other) for head in tails for other in tails[head] if not nodes[other] <= nodes[head]]
        ):
            for head, other in more:
                nodes[head] |= nodes[other]
        numbers = self._number_nodes(nodes)
        items: frozenset[Item] = frozenset((suffix, int(numbers.get(node, node))) for suffix, node in scanned)
        key = (items, accepting)
        if key not in self._numbers:
            self._numbers[key] = len(self._items)
            self._items.append(items)
            self._accepting.append(accepting)
            self._after.append({})
        return self._numbers[key]

    def _number_nodes(self, nodes: dict[str, set[Open]]) -> dict[int | str, int]:
        """A number for each node, the same for the same content; the nodes of a cycle are told apart by their names."""
        direct = {head: {node for _, node in items if isinstance(node, str)} for head, items in nodes.items()}
        reached = {head: set(inner) for head, inner in direct.items()}
        changed = True
        while changed:
            changed = False
            for inner in reached.values():
                wider = inner.union(*(reached[other] for other in inner))
                if len(wider) > len(inner):
                    inner |= wider
                    changed = True
        numbers: dict[int | str, int] = {}
        for head in sorted(
            nodes, key=lambda head: (len(reached[head] | {head}), head)
        ):  # what a node needs comes before it
            if head in numbers:
                continue
            cycle = sorted(other for other in reached[head] if head in reached[other]) or [head]
            content = {
                member: frozenset((suffix, numbers.get(node, node)) for suffix, node in nodes[member])
                for member in cycle
            }
            whole = frozenset(content.items()) if head in reached[head] else content[head]
            for member in cycle:
                key = (member, whole) if head in reached[head] else whole
                numbers[member] = self._node_numbers.setdefault(key, len(self._nodes))
                if numbers[member] == len(self._nodes):
                    self._nodes.append(frozenset())
                    self._depths.append(0)
            for member in cycle:
                number = numbers[member]
                items: frozenset[Item] = frozenset((s, int(numbers.get(node, node))) for s, node in nodes[member])
                self._nodes[number] = items
                outside = [node for suffix, node in items if suffix and node not in {numbers[m] for m in cycle}]
                inside = 1 if any(suffix for suffix, _ in items) else 0
                self._depths[number] = max((self._depths[node] + 1 for node in outside), default=inside)
            deepest = max(self._depths[numbers[member]] for member in cycle)
            for member in cycle:
                self._depths[numbers[member]] = deepest
        return numbers


def _nullable(grammar: Grammar) -> set[str]:
    """The nonterminals that derive the empty string."""
    found: set[str] = set()
    empty = lambda option: all(symbol in found for symbol in option)
    while more := {name for name, options in grammar.rules.items() if name not in found and any(map(empty, options))}:
        found |= more
    return found


def tabulate(grammar: Grammar, max_depth: int | None = None, max_states: int = 10_000) -> Dfa:
    """The grammar as a finite automaton.

    Args:
      grammar: any; without ``max_depth`` its nesting must be bounded.
      max_depth: strings that nest deeper (see `Recogniser.depth`) are left out of the language.
      max_states: at most, before equal ones are joined.

    Raises:
      ConfigError: more states than that, or no string that is as shallow as ``max_depth``.
    """
    require(max_depth is None or max_depth >= 0, f"max_depth: expected a number >= 0 or None, got {max_depth}")
    states = Recogniser(grammar)
    bytes_of = [np.flatnonzero(states.classes == k) for k in range(states.classes.max() + 1)]
    order, number, rows = [states.start], {states.start: 0}, []
    for state in order:  # grows on the way
        row = np.full(256, DEAD, np.int32)
        for group in bytes_of:
            after = states.step(state, int(group[0]))
            if after == DEAD or (max_depth is not None and states.depth(after) > max_depth):
                continue
            if after not in number:
                number[after] = len(order)
                order.append(after)
                hint = "give max_depth" if max_depth is None else f"max_depth {max_depth} is too much"
                require(len(order) <= max_states, f"grammar: more than {max_states} states; {hint}")
            row[group] = number[after]
        rows.append(row)
    whole = Dfa(np.stack(rows), np.array([states.accepts(state) for state in order]))
    what = "grammar" if max_depth is None else f"grammar to max_depth {max_depth}"
    return automaton.reduced(whole, what)
