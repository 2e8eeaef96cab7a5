"""llguidance and xgrammar against the masks of our reference: the same sets, state by state, on random walks."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.decode.grammar.by_llguidance import Llguidance
from jaxlm.decode.grammar.by_xgrammar import Xgrammar
from jaxlm.decode.grammar.constraint import Masks
from jaxlm.decode.grammar.context_free import Grammar
from jaxlm.decode.grammar.regex import regex
from jaxlm.decode.grammar.vocabulary import Vocabulary

BYTES = (*(bytes([b]) for b in range(256)), b"", b"")
WORDS = ("n+", "+n", "(n", ")*", "n*n", "))", "+(", '"a', 'a"', '",', "[1", "],", "aa", "ab", "é", "né", "12")
VOCABULARY = Vocabulary((*BYTES, *(word.encode() for word in WORDS)), (256,))

GRAMMARS = {
    "expression": "E ::= E '+' T | T  T ::= T '*' F | F  F ::= 'n' | '(' E ')'",
    "list": """V ::= "1" | '"' C '"' | "[" (V ("," V)*)? "]"   C ::= | "a" C""",
    "nullable": "S ::= A B A  A ::= | 'a'  B ::= | 'b' B 'b'",
}
PATTERNS = ["a?b(ab|aa)*", "[a-c]{2,4}(1|12)+", "n(é|né)*"]


def walks(reference, other, seed, count=12, length=10):
    """Random walks through the other's masks: all it allows is right, and where it may leave something out is known.

    llguidance leaves out tokens where only one byte can follow (it forces the tokenizer's own tokens); xgrammar some
    tokens of several bytes.
    """
    rng = np.random.default_rng(seed)
    equal = 0
    for _ in range(count):
        mine, theirs = reference.start, other.start
        for _ in range(length):
            right, found = (set(np.flatnonzero(c.allowed(s)).tolist()) for c, s in ((reference, mine), (other, theirs)))
            assert found and found <= right
            assert reference.may_end(mine) == other.may_end(theirs)
            first = {VOCABULARY.token_bytes[token][:1] for token in right}
            if isinstance(other, Xgrammar):
                assert {token for token in right if token < 256} <= found
            elif len(first) > 1:
                assert found == right
            equal += found == right
            token = int(rng.choice(sorted(found)))
            if token in VOCABULARY.end:
                break
            mine, theirs = reference.advance(mine, token), other.advance(theirs, token)
    assert equal


def adapter(kind):
    pytest.importorskip(kind.__name__.lower())
    return kind


@pytest.mark.parametrize("kind", [Llguidance, Xgrammar])
@pytest.mark.parametrize("name", GRAMMARS)
def test_grammars(kind, name):
    grammar = Grammar.from_text(GRAMMARS[name])
    walks(Masks(grammar, VOCABULARY), adapter(kind).grammar(grammar, VOCABULARY), seed=0)


@pytest.mark.parametrize("kind", [Llguidance, Xgrammar])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_regular_expressions(kind, pattern):
    walks(Masks(regex(pattern), VOCABULARY), adapter(kind).regex(pattern, VOCABULARY), seed=1)


@pytest.mark.parametrize("kind", [Llguidance, Xgrammar])
def test_json_schema(kind):
    """What the mask lets through is what the schema says; ours has the same language by hand."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    made = adapter(kind).json_schema(schema, Vocabulary(BYTES, (256,)))  # bytes alone: one way to write a text
    for text, good in {'{"a":true}': True, '{"a":false}': True, '{"b"': False, '{"a":1': False, "{}": False}.items():
        state = made.start
        allowed = []
        for byte in text.encode():
            allowed.append(bool(made.allowed(state)[byte]))
            state = made.advance(state, byte)
        assert all(allowed) == good, text
        assert not good or made.may_end(state)


def test_lark_and_gbnf():
    text = 'start: "a" start? "b"'
    walks(Masks(Grammar.from_text("S ::= 'a' S? 'b'"), VOCABULARY), adapter(Llguidance).lark(text, VOCABULARY), seed=2)


def test_gbnf():
    gbnf = adapter(Xgrammar).gbnf('root ::= "a" root? "b"', VOCABULARY)
    walks(Masks(Grammar.from_text("S ::= 'a' S? 'b'"), VOCABULARY), gbnf, seed=2)


@pytest.mark.parametrize("kind", [Llguidance, Xgrammar])
@pytest.mark.parametrize(
    ("form", "source", "message"),
    [
        ("regex", "(", r"'\('"),
        ("json_schema", "{", "'{'"),
        ("grammar", Grammar.from_text("S ::= [α-ω]"), "terminals are characters"),
    ],
)
def test_bad_grammars_are_one_line(kind, form, source, message):
    make = getattr(adapter(kind), form)
    with pytest.raises(ConfigError, match=message) as error:
        make(source, VOCABULARY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [Llguidance, Xgrammar])
def test_absent_libraries_are_one_line(kind, monkeypatch):
    name = kind.__name__.lower()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"pip install {name}") as error:
        kind.regex("a", VOCABULARY)
    assert "\n" not in str(error.value)
