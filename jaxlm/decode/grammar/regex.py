r"""Regular expressions as automata over bytes: Thompson's construction (1968), subsets, and as few states as can be.

Of the usual syntax, for whole strings (there are no anchors, look-arounds or back-references):

    x y    x|y    (x)  (?:x)    x*  x+  x?  x{m}  x{m,}  x{m,n}    .  (any character but a line feed)
    [a-z_]  [^"\\]    \d \w \s \D \W \S (ASCII)    \n \r \t \f \v    \xNN  \uNNNN  \U00NNNNNN    \ before a sign

Characters are code points and come out as their UTF-8.
"""

from __future__ import annotations

import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.decode.grammar import automaton
from jaxlm.decode.grammar.automaton import DEAD, Dfa
from jaxlm.decode.grammar.expression import LAST, Bytes, Either, Expression, Join, Range, Repeat, characters

MOST_REPEATS = 1000
DEEPEST = 100  # groups inside each other, and repetitions of one thing
LOOSE = 16  # states of the expression for each state of the automaton: alternatives may share theirs
_DIGIT, _SPACE = [(48, 57)], [(9, 13), (32, 32)]
_WORD = [(48, 57), (65, 90), (95, 95), (97, 122)]
_CLASSES = {"d": _DIGIT, "s": _SPACE, "w": _WORD}
_ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_HEX = {"x": 2, "u": 4, "U": 8}


def regex(pattern: str, max_states: int = 10_000) -> Dfa:
    """The automaton of the strings that match ``pattern`` from end to end.

    Raises `ConfigError` for what cannot be read (with its place), an empty language, or more than ``max_states``.
    """
    return automaton.reduced(compile_expression(parse(pattern), max_states), f"regex {shown(pattern)}")


def parse(pattern: str) -> Expression:
    """The syntax tree of a pattern. Raises `ConfigError` with the place of what cannot be read."""
    reader = Reader(pattern)
    tree = reader.either()
    if reader.at < len(pattern):
        raise reader.error(f"unexpected {reader.peek()!r}")
    return tree


def compile_expression(tree: Expression, max_states: int) -> Dfa:
    """The automaton of an expression without names, not reduced."""
    nfa = _Nfa(LOOSE * max_states)
    start, end = nfa.state(), nfa.state()
    nfa.add(tree, start, end)
    kind = automaton.boundaries({allowed for moves in nfa.moves for allowed, _ in moves})
    bytes_of = [np.flatnonzero(kind == k) for k in range(kind.max() + 1)]
    first = nfa.closed({start})
    number, queue, rows = {first: 0}, [first], []
    for subset in queue:  # grows on the way
        row = np.full(256, DEAD, np.int32)
        moves = [move for state in subset for move in nfa.moves[state]]
        for group in bytes_of:
            after = nfa.closed({target for allowed, target in moves if int(group[0]) in allowed})
            if after:
                if after not in number:
                    number[after] = len(queue)
                    queue.append(after)
                    require(len(queue) <= max_states, f"regex: more than {max_states} states; repeat less of it")
                row[group] = number[after]
        rows.append(row)
    return Dfa(np.stack(rows), np.array([end in subset for subset in queue]))


class _Nfa:
    """States with moves on bytes and on nothing; `ConfigError` for more than ``most``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.moves: list[list[tuple[frozenset[int], int]]] = []
        self.free: list[list[int]] = []

    def state(self) -> int:
        require(
            len(self.moves) < self.most, f"regex: more than {self.most} states before any are one; repeat less of it"
        )
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1

    def add(self, tree: Expression, start: int, end: int) -> None:
        """Paths from ``start`` to ``end`` that spell the strings of ``tree``."""
        if isinstance(tree, Bytes):
            self.moves[start].append((tree.allowed, end))
        elif isinstance(tree, Join):
            for part in tree.parts:
                start, before = self.state(), start
                self.add(part, before, start)
            self.free[start].append(end)
        elif isinstance(tree, Either):
            for option in tree.options:
                self.add(option, start, end)
        elif isinstance(tree, Repeat):
            for _ in range(tree.least):
                start, before = self.state(), start
                self.add(tree.part, before, start)
            if tree.most is None:
                loop = self.state()
                self.free[start].append(loop)
                back = self.state()
                self.add(tree.part, loop, back)
                self.free[back].append(loop)
                self.free[loop].append(end)
            else:
                self.free[start].append(end)
                for _ in range(tree.most - tree.least):
                    start, before = self.state(), start
                    self.add(tree.part, before, start)
                    self.free[start].append(end)
        else:
            raise TypeError(f"a regular expression has no names, got {tree}")

    def closed(self, states: set[int]) -> frozenset[int]:
        """With all that is reached by moves on nothing."""
        todo, found = list(states), set(states)
        while todo:
            for state in self.free[todo.pop()]:
                if state not in found:
                    found.add(state)
                    todo.append(state)
        return frozenset(found)


class Reader:
    """Reads a pattern from left to right."""

    def __init__(self, text: str, at: int = 0) -> None:
        self.text, self.at = text, at
        self._depth = 0

    def error(self, what: str) -> ConfigError:
        return ConfigError(f"regex {shown(self.text)}: {what} at character {self.at}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        if self.at >= len(self.text):
            raise self.error("unfinished")
        self.at += 1
        return self.text[self.at - 1]

    def either(self) -> Expression:
        """Alternatives, up to the end or a closing parenthesis."""
        options = [self._join()]
        while self.peek() == "|":
            self.take()
            options.append(self._join())
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _join(self) -> Expression:
        parts = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else Join(tuple(parts))

    def _repeated(self) -> Expression:
        part, count = self._atom(), 0
        while self.peek() in ("*", "+", "?", "{") and self.peek():
            part, count = Repeat(part, *self.times()), count + 1
            if count > DEEPEST:
                raise self.error(f"more than {DEEPEST} repetitions of one thing")
        return part

    def times(self) -> tuple[int, int | None]:
        """How often: ``*``, ``+``, ``?`` or braces."""
        sign = self.take()
        if sign != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        inside = ""
        while self.peek() != "}":
            inside += self.take()
        self.take()
        least, comma, most = inside.partition(",")
        if not (least.isascii() and least.isdigit() and (not most or (most.isascii() and most.isdigit()))):
            raise self.error(f"expected {{m}}, {{m,}} or {{m,n}}, got {{{inside}}}")
        low, high = int(least), int(most) if most else None if comma else int(least)
        if max(low, high or 0) > MOST_REPEATS or (high is not None and high < low):
            raise self.error(f"expected {{m,n}} with m <= n <= {MOST_REPEATS}, got {{{inside}}}")
        return low, high

    def _atom(self) -> Expression:
        sign = self.take()
        if sign == "(":
            if self.text.startswith("?:", self.at):
                self.at += 2
            elif self.peek() == "?":
                raise self.error("only (...) and (?:...) are groups")
            self._depth += 1
            if self._depth > DEEPEST:
                raise self.error(f"more than {DEEPEST} groups inside each other")
            inner = self.either()
            if self.peek() != ")":
                raise self.error("expected )")
            self.take()
            self._depth -= 1
            return inner
        if sign == "[":
            return self.character_class()
        if sign == ".":
            return characters([(10, 10)], negated=True)
        if sign == "\\":
            return characters(self._escaped())
        if sign in "*+?{":
            self.at -= 1
            raise self.error(f"nothing to repeat before {sign!r}")
        if sign in "^$":
            self.at -= 1
            raise self.error(f"the whole string matches, there are no anchors; write \\{sign} for the character")
        return characters(_one(ord(sign)))

    def character_class(self) -> Expression:
        """What follows an opening bracket, up to and including the closing one."""
        negated = self.peek() == "^"
        self.at += negated
        ranges: list[Range] = []
        while self.peek() != "]" or not ranges:
            low = self._member()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.take()
                high = self._member()
                if len(low) > 1 or len(high) > 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    raise self.error("a class is no end of a range")
                if low[0][0] > high[0][0]:
                    raise self.error("a range runs backwards")
                low = [(low[0][0], high[0][0])]
            ranges += low
        self.take()
        return characters(ranges, negated)

    def _member(self) -> list[Range]:
        sign = self.take()
        return self._escaped() if sign == "\\" else _one(ord(sign))

    def _escaped(self) -> list[Range]:
        sign = self.take()
        if sign.lower() in _CLASSES:
            ranges = _CLASSES[sign.lower()]
            if sign.islower():
                return ranges
            edges = [-1, *(edge for low, high in ranges for edge in (low, high)), LAST + 1]
            return [(a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        if sign in _ESCAPES:
            return _one(_ESCAPES[sign])
        if sign in _HEX:
            digits = self.text[self.at : self.at + _HEX[sign]]
            if len(digits) < _HEX[sign] or any(d not in "0123456789abcdefABCDEF" for d in digits):
                raise self.error(f"expected {_HEX[sign]} hexadecimal digits after \\{sign}")
            self.at += _HEX[sign]
            if int(digits, 16) > LAST:
                raise self.error(f"no character U+{digits}")
            return _one(int(digits, 16))
        if sign.isalnum():
            raise self.error(f"unknown escape \\{sign}")
        return _one(ord(sign))


def _one(code: int) -> list[Range]:
    return [(code, code)]
