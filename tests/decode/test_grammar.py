"""Grammars and regular expressions as masks: against brute force, Python's own engine, and each other."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.decode.grammar import automaton
from jaxlm.decode.grammar.automaton import DEAD
from jaxlm.decode.grammar.constraint import ENDED, Masks
from jaxlm.decode.grammar.context_free import Grammar
from jaxlm.decode.grammar.earley import Recogniser, tabulate
from jaxlm.decode.grammar.expression import characters
from jaxlm.decode.grammar.regex import compile_expression, parse, regex
from jaxlm.decode.grammar.vocabulary import Vocabulary, token_table
from jaxlm.tokenize.byte import ByteTokenizer

JSON = r"""
json   ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" (string ":" json ("," string ":" json)*)? "}"    # no white space
array  ::= "[" (json ("," json)*)? "]"
string ::= /"([^"\\\x00-\x1f]|\\["\\\/bfnrt]|\\u[0-9a-f]{4})*"/
number ::= /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
"""


def of(*tokens: str | bytes) -> Vocabulary:
    """A vocabulary of these tokens and, last, the end."""
    data = [token.encode() if isinstance(token, str) else token for token in tokens]
    return Vocabulary((*data, b""), (len(data),))


def derived(rules, start, longest):
    """Every string of at most ``longest`` characters, by a fixpoint over the sets of all nonterminals."""
    known = {name: set() for name in rules}
    while True:
        new = {
            name: {
                "".join(parts)
                for option in options
                for parts in itertools.product(*(known[s] if s in rules else [s] for s in option))
                if sum(map(len, parts)) <= longest
            }
            for name, options in rules.items()
        }
        if new == known:
            return known[start]
        known = new


SYMBOLS = ["A", "B", "C", "a", "b"]
alternatives = st.lists(st.lists(st.sampled_from(SYMBOLS), max_size=3), max_size=3)
random_rules = st.fixed_dictionaries({"A": alternatives, "B": alternatives, "C": alternatives})


def goes_on(rules: dict[str, list[list[str]]], start: str, text: str) -> bool:
    """Whether a string of the language begins with ``text``, however long it is: Bar-Hillel's product of the grammar
    with the automaton that reads ``text`` and then anything."""
    last, found = len(text), set[tuple[int, str, int]]()

    def ends(i: int, symbol: str) -> set[int]:
        if symbol in rules:
            return {k for j, name, k in found if (j, name) == (i, symbol)}
        return {last} if i == last else {i + 1} if text[i] == symbol else set()

    while True:
        new = set()
        for (name, alternatives), i in itertools.product(rules.items(), range(last + 1)):
            for alternative in alternatives:
                reached = {i}
                for symbol in alternative:
                    reached = {k for j in reached for k in ends(j, symbol)}
                new |= {(i, name, k) for k in reached}
        if new <= found:
            return (0, start, last) in found
        found |= new


@settings(max_examples=60)
@given(random_rules)
@example({"A": [["C"]], "B": [], "C": [["b", "a"], ["a", "A", "A"]]})  # the shortest string from aaaa has 14 letters
def test_states_are_exact_for_any_grammar(rules):
    """Recursion on either side, cycles, nullable and unproductive rules; strings are enumerated."""
    strings = derived(rules, "A", 7)
    try:
        states = Recogniser(Grammar.from_rules(rules, "A"))
    except ConfigError as error:
        assert "the language is empty" in str(error)
        assert not strings
        return
    for length in range(5):
        for letters in itertools.product("ab", repeat=length):
            text = "".join(letters)
            state = automaton.run(states, text.encode())
            assert states.accepts(state) == (text in strings)
            assert (state != DEAD) == goes_on(rules, "A", text)


@settings(max_examples=30)
@given(random_rules, st.integers(0, 2))
def test_tables_are_the_grammar_to_a_depth(rules, depth):
    """No string too many; and of those within the depth none too few."""
    try:
        grammar = Grammar.from_rules(rules, "A")
        table = tabulate(grammar, depth, 300)
    except ConfigError:
        return
    states = Recogniser(grammar)
    for length in range(6):
        for letters in itertools.product(b"ab", repeat=length):
            path = list(itertools.accumulate(letters, states.step, initial=states.start))
            shallow = all(state != DEAD and states.depth(state) <= depth for state in path[1:])
            assert table.matches(bytes(letters)) == (shallow and states.accepts(path[-1]))


PATTERNS = ["(ab|a)*", "a{2,3}(b|ba)?", "[^a]b*", "(a?b){0,2}a{2,}", "", "(|a)b", ".a", "((a*)b)*", "a+|b+"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_regex_against_python(pattern):
    dfa, peer = regex(pattern), re.compile(pattern)
    for length in range(7):
        for letters in itertools.product("ab", repeat=length):
            text = "".join(letters)
            assert dfa.matches(text.encode()) == bool(peer.fullmatch(text)), text


@pytest.mark.parametrize("pattern", [*PATTERNS, "[α-ωé]{1,2}|x[0-9]*", r"(a|b)*a(a|b){3}"])
def test_regex_and_grammar_have_the_same_automaton(pattern):
    """Two constructions, subsets of an NFA and tabulated Earley sets, lead to the one smallest automaton."""
    mine, other = regex(pattern), tabulate(Grammar.from_expressions({"S": parse(pattern)}, "S"))
    np.testing.assert_array_equal(mine.table, other.table)
    np.testing.assert_array_equal(mine.accepting, other.accepting)


CODES = [0, 0x41, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF, 0xE000, 0xFFFD, 0xFFFF, 0x10000, 0x3FFFF, 0x10FFFF]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF)), min_size=1, max_size=3), st.booleans())
def test_ranges_of_characters_are_their_utf8(ranges, negated):
    spans = [(min(span), max(span)) for span in ranges]
    dfa = compile_expression(characters(spans, negated), 1000)
    edges = {edge + d for span in spans for edge in span for d in (-1, 0, 1)} | set(CODES)
    for code in edges:
        if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
            inside = any(low <= code <= high for low, high in spans)
            assert dfa.matches(chr(code).encode()) == (inside != negated), hex(code)
    assert not dfa.matches(b"\xed\xa0\x80") and not dfa.matches(b"\xc0\x80") and not dfa.matches(b"\xff")


def test_reduced_automata_are_the_smallest():
    assert len(regex("(a|b)*abb").table) == 4  # the textbook's
    assert len(regex("(a|b)*a(a|b){3}").table) == 16
    assert len(tabulate(Grammar.from_text("L ::= L 'a' | 'a'")).table) == 2  # left recursion
    assert len(tabulate(Grammar.from_text("L ::= 'a' L | 'a'")).table) == 2  # right recursion


TOKENS = ["a", "b", "é", "\xe9".encode()[:1], "é".encode()[1:], b"b\xc3", "ab", "aé", "日".encode()[1:], b"\xe6",
          b"\xa9a", "(", ")", "((", ")(", "a)"]  # fmt: skip
LANGUAGES = {
    "regular": (r"(a|é|日b)+b?", None),
    "nested": (None, "S ::= 'a' | 'é' | '日' | '(' S* ')'"),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_thousand_random_walks(name):
    """Each ends in a string of the language; and each short string of it is reached, over every way of cutting it."""
    pattern, text = LANGUAGES[name]
    vocabulary = of(*TOKENS)
    language = regex(pattern) if pattern else Grammar.from_text(text)
    masks, rng = Masks(language, vocabulary), np.random.default_rng(0)
    finished = 0
    for _ in range(1000):
        tokens: list[int] = []
        state = masks.start
        while len(tokens) < 40 and state != ENDED:
            tokens.append(int(rng.choice(np.flatnonzero(masks.allowed(state)))))
            state = masks.advance(state, tokens[-1])
        if state == ENDED:
            finished += 1
            assert in_language(b"".join(vocabulary.token_bytes[t] for t in tokens).decode(), name)
    assert finished > 300
    for letters in itertools.chain(*(itertools.product("aéb日()", repeat=n) for n in range(5))):
        word = "".join(letters)
        for cut in cuts(word.encode(), vocabulary.token_bytes):
            path = [masks.start]
            for token in cut:
                good = masks.allowed(path[-1])[token]
                path.append(masks.advance(path[-1], token))
                assert good or not in_language(word, name)
            assert path[-1] == ENDED or masks.may_end(path[-1]) == in_language(word, name)


def in_language(text, name):
    if name == "regular":
        return bool(re.fullmatch(LANGUAGES["regular"][0], text))
    while (shorter := re.sub(r"\([aé日]*\)", "a", text)) != text:
        text = shorter
    return text in ("a", "é", "日")


def cuts(data, pieces):
    """Every sequence of tokens that spells some bytes."""
    if not data:
        yield []
        return
    for token, piece in enumerate(pieces):
        if piece and data.startswith(piece):
            yield from ([token, *rest] for rest in cuts(data[len(piece) :], pieces))


@pytest.mark.parametrize("pattern", ["(ab|é)*", "a{2}b?", "[^a]*", '"[a日é]*"'])
def test_tables_over_tokens_are_the_masks(pattern):
    """The table of all states at once and the walk from each state say the same, token by token."""
    vocabulary = of(*(bytes([b]) for b in range(256)), *TOKENS)
    dfa = regex(pattern)
    table, masks = token_table(dfa, vocabulary), Masks(dfa, vocabulary)
    todo, seen = [(table.start, masks.start)], set()
    while todo:
        pair = todo.pop()
        if pair in seen:
            continue
        seen.add(pair)
        allowed = masks.allowed(pair[1])
        np.testing.assert_array_equal(table.allowed(pair[0]), allowed)
        for token in np.flatnonzero(allowed).tolist():
            todo.append((table.step(pair[0], token), masks.advance(pair[1], token)))
    assert len(seen) == len(table.after)
    assert (len(table.after) - 1, ENDED) in seen


def test_json_grammar_against_the_parser():
    vocabulary = Vocabulary.of(ByteTokenizer())
    masks, rng = Masks(Grammar.from_text(JSON), vocabulary), np.random.default_rng(1)
    likely = list(b'[]{}",:0123.5e-atrufls') + list(vocabulary.end)
    finished = 0
    for _ in range(300):
        out, state = b"", masks.start
        while len(out) < 60 and state != ENDED:
            allowed = masks.allowed(state)
            some = [t for t in likely if allowed[t]] or np.flatnonzero(allowed).tolist()
            token = int(rng.choice(some))
            out += vocabulary.token_bytes[token]
            state = masks.advance(state, token)
        if state == ENDED:
            finished += 1
            json.loads(out)
    assert finished > 100
    for value in ({"a": [1, -2.5e-3, None, True], "é\n日": "\u0001"}, [], "x", [[[[{}]]]]):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert masks.may_end(masks.run(list(text.encode())))


def test_the_text_form():
    """Every notation against the same language in lists."""
    text = """
    # lists of x and "quotes"
    list ::= "[" (item ("," item)*)? ']' | item{2}
    item ::= 'x' | "\\"" | [b-d]+ | /e\\/f/ | q? 'é'
      | ""
    q ::= 'q' """
    states = Recogniser(Grammar.from_text(text))
    yes = ["[]", "[x]", "[x,bcd]", "[,]", 'x"', "", "e/fqé", "[é,qé]"]
    no = ["[", "xxx", "[a]", "f", "q", "e/f/", "[x,x", "qx"]
    assert [states.accepts(automaton.run(states, word.encode())) for word in yes] == [True] * len(yes)
    assert [states.accepts(automaton.run(states, word.encode())) for word in no] == [False] * len(no)


def test_after_the_end():
    masks = Masks(regex("a+"), of("a", "b"))
    assert masks.advance(masks.start, 1) == ENDED  # not allowed
    assert masks.advance(ENDED, 0) == ENDED == masks.advance(masks.advance(masks.start, 0), 2)
    assert masks.allowed(ENDED).tolist() == [False, False, True] and masks.may_end(ENDED)


S = {"S": [["a", "S"], ["b"]]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Grammar.from_rules(S, "T"), "unknown start of a grammar 'T'"),
        (lambda: Grammar.from_rules({"S": [["Sx"]]}, "S"), "unknown nonterminal in the rule 'S'"),
        (lambda: Grammar.from_rules({"S": [["a", "S"]]}, "S"), "no string comes to an end from 'S'"),
        (lambda: Grammar.from_rules({"S": []}, "S"), "the language is empty"),
        (lambda: Grammar.from_text("S ::= T"), "unknown nonterminal in the rule 'S': 'T'"),
        (lambda: Grammar.from_text(""), "no rule in it"),
        (lambda: Grammar.from_text("'a'"), "line 1: expected  name ::="),
        (lambda: Grammar.from_text("S ::= 'a'\nS ::= 'b'"), "line 2: S is defined twice"),
        (lambda: Grammar.from_text("S ::= ('a'"), r"line 1: \( without \)"),
        (lambda: Grammar.from_text("S ::= 'a' $"), "line 1: cannot read"),
        (lambda: Grammar.from_text("S ::= 'a'\n | *"), r"line 2: unexpected \*"),
        (lambda: Grammar.from_text("S ::= 'a'{x}"), r"line 1: .*expected \{m\}"),
        (lambda: Grammar.from_text("S ::= /(/"), "line 1: regex"),
        (lambda: Grammar.from_text('S ::= "\\q"'), "escapes are those of JSON"),
        (lambda: Grammar.from_text("S ::= [a"), "line 1: regex.*unfinished"),
        (lambda: regex("a)"), "unexpected"),
        (lambda: regex("(" * 3000 + "a" + ")" * 3000), "more than 100 groups inside each other at character 101"),
        (lambda: regex("a" + "?" * 3000), "more than 100 repetitions of one thing"),
        (lambda: Grammar.from_text("S ::= 'a'" + "?" * 3000), "line 1: more than 100 repetitions of one thing"),
        (lambda: Grammar.from_text("S ::= " + "(" * 3000 + "'a'" + ")" * 3000), "line 1: more than 100 groups"),
        (lambda: regex("*a"), "nothing to repeat"),
        (lambda: regex("^a"), "no anchors"),
        (lambda: regex("(?=a)"), "only"),
        (lambda: regex("[b-a]"), "runs backwards"),
        (lambda: regex("[a-\\d]"), "no end of a range"),
        (lambda: regex("\\q"), "unknown escape"),
        (lambda: regex("\\u12"), "4 hexadecimal digits"),
        (lambda: regex("a{3,2}"), "m <= n"),
        (lambda: regex("[^\\x00-\\U0010FFFF]"), "no string at all"),
        (lambda: regex("(a|b)*a(a|b){12}", 1000), "more than 1000 states"),
        (lambda: regex("(a{1000}){1000}", 1000), "more than 16000 states before any are one; repeat less"),
        (
            lambda: tabulate(Grammar.from_text("S ::= '(' S ')' |"), max_states=50),
            "more than 50 states; give max_depth",
        ),
        (lambda: tabulate(Grammar.from_text("S ::= '(' '(' 'a' ')' ')' | '(' S ')'"), -1), "max_depth"),
        (lambda: Vocabulary((b"a",), ()), "no end token"),
        (lambda: Vocabulary((b"a",), (1,)), "token \\[1\\] is outside the vocabulary of 1"),
        (lambda: token_table(regex("ac|b"), of("a", "b")), "after b'a'; next is one of b'c'"),
        (lambda: token_table(regex("é"), of(b"\xc3", "e")), r"next is one of b'\\xa9'"),
        (lambda: Masks(regex("c"), of("a")), "after b''; next is one of b'c'"),
        (lambda: Masks(regex("ac|b"), of("a", "b")), "after b'a'; next is one of b'c'"),
        (
            lambda: Masks(Grammar.from_text("S ::= 'c' S?"), of("a")).allowed(0),
            "no token of the vocabulary goes on.*next is one of b'c'",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
