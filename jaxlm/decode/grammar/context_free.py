r"""Context-free grammars: as rules, or as text.

As rules, each nonterminal has a list of alternatives, which are lists of nonterminals and of single characters (one
that is a nonterminal's name is that nonterminal), or of `bytes` of any length; ``[]`` is the empty string:

    Grammar.from_rules({"S": [[], ["(", "S", ")", "S"]]}, start="S")

As text, in an extended Backus-Naur form (ISO 14977's idea in the notation of W3C and of llama.cpp's GBNF):

    list   ::= "[" (item ("," item)*)? "]"     # a comment
    item   ::= number | list | 'x'
    number ::= /-?[0-9]+/ | [a-f]{2,4}

with literals in quotes (JSON's escapes), regular expressions between slashes, classes of characters, groups, and
``* + ? {m} {m,} {m,n}``. There is no implicit white space. The first rule is the start.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown, unknown
from jaxlm.decode.grammar import regex
from jaxlm.decode.grammar.expression import Bytes, Either, Expression, Join, Name, Repeat, literal

Symbol = str | frozenset[int]  # a nonterminal, or one byte out of a set
Rules = dict[str, tuple[tuple[Symbol, ...], ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
    """Rules over bytes.

    Attributes:
      rules: nonterminal -> alternatives, each a sequence of nonterminals (`str`) and of sets of bytes. Alternatives
        that never come to an end are left out.
      start: the nonterminal whose strings are the language.
    """

    rules: Rules
    start: str

    @classmethod
    def from_rules(cls, rules: Mapping[str, Sequence[Sequence[str | bytes]]], start: str) -> Grammar:
        """A grammar from lists. Raises `ConfigError` for a name without rules, or if no string comes to an end."""

        def expression(name: str, symbol: str | bytes) -> Expression:
            if isinstance(symbol, str) and symbol in rules:
                return Name(symbol)
            if isinstance(symbol, str) and len(symbol) != 1:
                raise unknown(
                    f"nonterminal in the rule {shown(name)} (no rule and no single character):", symbol, rules
                )
            return literal(symbol)

        return cls.from_expressions(
            {
                name: Either(tuple(Join(tuple(expression(name, s) for s in option)) for option in options))
                for name, options in rules.items()
            },
            start,
        )

    @classmethod
    def from_text(cls, text: str, start: str | None = None) -> Grammar:
        """A grammar from its text form; raises `ConfigError` with the line of what cannot be read."""
        found = _Reader(text).rules()
        require(found, "grammar: no rule in it; expected  name ::= ...")
        return cls.from_expressions(found, next(iter(found)) if start is None else start)

    @classmethod
    def from_expressions(cls, rules: Mapping[str, Expression], start: str) -> Grammar:
        """A grammar from syntax trees; what is nested in them gets nonterminals of its own."""
        if start not in rules:
            raise unknown("start of a grammar", start, rules)
        flat = _Flat(rules)
        useful = _productive(flat.rules)
        require(useful[start], f"grammar: no string comes to an end from {shown(start)}; the language is empty")
        return cls(useful, start)


class _Flat:
    """Rules without nested expressions."""

    def __init__(self, rules: Mapping[str, Expression]) -> None:
        self.rules: Rules = {}
        self._given, self._fresh = rules, itertools.count()
        for name, tree in rules.items():
            self.rules[name] = self._alternatives(tree, name)

    def _alternatives(self, tree: Expression, name: str) -> tuple[tuple[Symbol, ...], ...]:
        if isinstance(tree, Either):
            return tuple(option for inner in tree.options for option in self._alternatives(inner, name))
        return (self._sequence(tree, name),)

    def _sequence(self, tree: Expression, name: str) -> tuple[Symbol, ...]:
        if isinstance(tree, Bytes):
            return (tree.allowed,)
        if isinstance(tree, Name):
            if tree.name not in self._given:
                raise unknown(f"nonterminal in the rule {shown(name)}:", tree.name, self._given)
            return (tree.name,)
        if isinstance(tree, Join):
            return tuple(symbol for part in tree.parts for symbol in self._sequence(part, name))
        if isinstance(tree, Either):
            options = self._alternatives(tree, name)
            return options[0] if len(options) == 1 else (self._named(name, options),)
        once = self._sequence(tree.part, name)
        if len(once) > 1:
            once = (self._named(name, (once,)),)
        if tree.most is None:
            loop = self._named(name, ())
            self.rules[loop] = ((), (*once, loop))
            return (*once * tree.least, loop)
        rest: tuple[Symbol, ...] = ()
        for _ in range(tree.most - tree.least):
            rest = (self._named(name, ((), (*once, *rest))),)
        return (*once * tree.least, *rest)

    def _named(self, name: str, options: tuple[tuple[Symbol, ...], ...]) -> str:
        fresh = f"{name}.{next(self._fresh)}"
        while fresh in self._given:
            fresh = f"{name}.{next(self._fresh)}"
        self.rules[fresh] = options
        return fresh


def _productive(rules: Rules) -> Rules:
    """Only alternatives that derive some string, so that every partial derivation can be finished."""
    good: set[str] = set()
    ends = lambda option: all(symbol in good if isinstance(symbol, str) else bool(symbol) for symbol in option)
    while more := {name for name, options in rules.items() if name not in good and any(map(ends, options))}:
        good |= more
    return {name: tuple(dict.fromkeys(filter(ends, options))) for name, options in rules.items()}


_TOKENS = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)|(?P<define>::=)|(?P<name>[A-Za-z_][\w.-]*)|(?P<sign>[|()*+?]|\{[^}]*\})"""
    r"""|(?P<quoted>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<regex>/(?:[^/\\\n]|\\.)+/)|(?P<class>\[)"""
)


class _Reader:
    """The text form, by recursive descent."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str | Expression, int]] = []
        self._depth = 0
        at = 0
        while at < len(text):
            line = text.count("\n", 0, at) + 1
            found = _TOKENS.match(text, at)
            if found is None:
                raise ConfigError(f"grammar, line {line}: cannot read {shown(text[at : at + 20])}")
            kind, value = str(found.lastgroup), found[0]
            at = found.end()
            if kind == "class":
                reader = regex.Reader(text, at)
                self._tokens.append(("tree", _within(line, reader.character_class), line))
                at = reader.at
            elif kind == "regex":
                pattern = value[1:-1].replace("\\/", "/")
                self._tokens.append(("tree", _within(line, lambda pattern=pattern: regex.parse(pattern)), line))
            elif kind == "quoted":
                self._tokens.append(("tree", literal(_unquoted(value, line)), line))
            elif kind != "space":
                self._tokens.append((kind, value, line))
        self._at = 0

    def rules(self) -> dict[str, Expression]:
        out: dict[str, Expression] = {}
        while self._at < len(self._tokens):
            kind, name, line = self._tokens[self._at]
            if kind != "name" or not self._defines(self._at):
                raise ConfigError(f"grammar, line {line}: expected  name ::= ..., got {shown(name)}")
            require(name not in out, f"grammar, line {line}: {name} is defined twice; write alternatives with |")
            self._at += 2
            out[str(name)] = self._either()
        return out

    def _defines(self, at: int) -> bool:
        return at + 1 < len(self._tokens) and self._tokens[at + 1][0] == "define"

    def _peek(self) -> tuple[str, str | Expression]:
        """The next token; an end where the rule is over."""
        if self._at == len(self._tokens) or (self._tokens[self._at][0] == "name" and self._defines(self._at)):
            return "end", ""
        return self._tokens[self._at][:2]

    def _either(self) -> Expression:
        options = [self._join()]
        while self._peek() == ("sign", "|"):
            self._at += 1
            options.append(self._join())
        return Either(tuple(options))

    def _join(self) -> Expression:
        parts = []
        while (token := self._peek())[0] != "end" and token not in (("sign", "|"), ("sign", ")")):
            parts.append(self._repeated())
        return Join(tuple(parts))

    def _repeated(self) -> Expression:
        kind, value = self._peek()
        line = self._tokens[self._at][2]
        self._at += 1
        if isinstance(value, str) and kind != "name":
            require((kind, value) == ("sign", "("), f"grammar, line {line}: unexpected {value}")
            self._depth += 1
            most = regex.DEEPEST
            require(self._depth <= most, f"grammar, line {line}: more than {most} groups inside each other")
            part = self._either()
            require(self._peek() == ("sign", ")"), f"grammar, line {line}: ( without )")
            self._at += 1
            self._depth -= 1
        else:
            part = Name(value) if isinstance(value, str) else value
        count = 0
        while (token := self._peek())[0] == "sign" and str(token[1])[0] in "*+?{":
            times = regex.Reader(str(token[1]))
            part, count = Repeat(part, *_within(line, times.times)), count + 1
            require(count <= regex.DEEPEST, f"grammar, line {line}: more than {regex.DEEPEST} repetitions of one thing")
            self._at += 1
        return part


def _within(line: int, read: Callable[[], Any]) -> Any:
    """What ``read`` reads, its errors with the line."""
    try:
        return read()
    except ConfigError as error:
        raise ConfigError(f"grammar, line {line}: {error}") from None


def _unquoted(quoted: str, line: int) -> str:
    inside = quoted[1:-1]
    if quoted[0] == "'":
        inside = re.sub(r'\\.|"', lambda found: {"\\'": "'", '"': '\\"'}.get(found[0], found[0]), inside)
    try:
        return json.loads(f'"{inside}"', strict=False)
    except ValueError:
        raise ConfigError(f"grammar, line {line}: cannot read {shown(quoted)}; escapes are those of JSON") from None
