"""Grammars in the decode loop: what `jaxlm.generate` writes under them is in the language, whatever the model wants."""

from __future__ import annotations

import concurrent.futures
import json
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.decode.grammar import constraint
from jaxlm.decode.grammar.automaton import run
from jaxlm.decode.grammar.constraint import Masks, Matched
from jaxlm.decode.grammar.context_free import Grammar
from jaxlm.decode.grammar.earley import tabulate
from jaxlm.decode.grammar.regex import regex
from jaxlm.decode.grammar.vocabulary import Vocabulary
from jaxlm.decode.processor import make_all
from jaxlm.decode.processors.automaton import Automaton
from jaxlm.decode.processors.constraint import Constrained
from tests.tiny import params_of, tiny

# Of a model of 60 ids, the last two of which the vocabulary does not know.
PIECES = [*(c.encode() for c in '0123456789-.[],"ab{}:'), b"\xc3", b"\xa9", b"12", b'",', b"],", b'["', b"\xa9a", b"-1"]
VOCABULARY = Vocabulary((*PIECES, *([b""] * (57 - len(PIECES))), b""), (57,))
SIZE, END, ROWS, NEW = 60, 57, 6, 24
NUMBERS = regex(r'-?(0|[1-9][0-9]*)(\.[0-9]+)?|"[abé]{1,3}"')
LISTS = Grammar.from_text(r"""
    list ::= "[" (item ("," item)*)? "]"
    item ::= list | "-"? [1-9] | /"[abé]*"/
    """)


@pytest.fixture(scope="module")
def generate():
    """Samples of a model of random parameters under processors, int32 [ROWS, NEW]; one model, so one compile a kind."""
    spec = tiny(vocab_size=SIZE, repeats=1)
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    prompt = np.random.default_rng(0).integers(0, SIZE, (ROWS, 3))

    def call(processors, seed, **more):
        key = jax.random.key(seed)
        return np.asarray(
            jaxlm.generate(model, params, prompt, NEW, 1.0, key, stop=(END,), processors=processors, **more)
        )

    return call


def text_of(row):
    """(what a row says, whether it has ended)."""
    ended = np.flatnonzero(row == END)
    ids = row[: ended[0]] if ended.size else row
    assert (ids < len(PIECES)).all()
    return b"".join(PIECES[i] for i in ids), bool(ended.size)


def test_a_regular_language(generate):
    finished = 0
    for seed in range(4):
        for row in generate([Automaton.of(NUMBERS, VOCABULARY)], seed):
            data, ended = text_of(row)
            assert NUMBERS.matches(data) or not ended
            finished += ended
            if ended:
                assert re.fullmatch(r'-?(0|[1-9][0-9]*)(\.[0-9]+)?|"[abé]{1,3}"', data.decode())
    assert finished > 8


def test_a_nested_language_from_the_host_and_as_a_table(generate):
    """The host's masks and the compiled table to a depth lead to the same texts, as far as the table is deep."""
    host, finished = Constrained(Masks(LISTS, VOCABULARY)), 0
    table = Automaton.of(tabulate(LISTS, 12), VOCABULARY)
    for seed in range(2):
        asked, looked_up = generate([host], seed), generate([table], seed)
        for row, other in zip(asked, looked_up, strict=True):
            data, ended = text_of(row)
            if ended:
                json.loads(data)
                finished += 1
            if data.count(b"[") <= 3:
                np.testing.assert_array_equal(row, other)
    assert finished > 2


def test_the_mask_is_the_automatons():
    """Step by step against the reference, with tokens that are not allowed, ids beyond the vocabulary, and the end."""
    masks = Masks(NUMBERS, VOCABULARY)
    rng = np.random.default_rng(0)
    for made in (Automaton.of(NUMBERS, VOCABULARY), Constrained(masks)):
        processor = make_all([made], SIZE)[0]
        states, state = [masks.start] * 4, processor.init(jnp.zeros((4, 2), jnp.int32), jnp.ones((4, 2), bool), SIZE)
        token = None
        for step in range(8):
            logits = rng.standard_normal((4, SIZE)).astype(np.float32)
            out, state = processor(jnp.asarray(logits), token, step, state)
            for row, s in enumerate(states):
                allowed = np.append(masks.allowed(s), [False, False])
                np.testing.assert_array_equal(np.asarray(out)[row], np.where(allowed, logits[row], -np.inf))
            choice = [int(np.argmax(row)) for row in np.asarray(out)]
            if step == 3:
                choice[2:] = [SIZE - 1, 40]  # neither is allowed: both texts have ended
            states = [masks.advance(s, t) for s, t in zip(states, choice, strict=True)]
            token = jnp.asarray(choice, jnp.int32)


def test_another_automaton_compiles_nothing():
    """Its tables are data, and its state has the shape of the batch."""
    calls = []

    @jax.jit
    def call(processor, logits, state):
        calls.append(None)
        return processor(logits, jnp.zeros(2, jnp.int32), 0, state)

    for pattern in ("a|b", "b|a"):
        processor = Automaton.of(regex(pattern), VOCABULARY)
        call(processor, jnp.zeros((2, SIZE)), jnp.zeros(2, jnp.int32))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "automaton", "args": {"after": [[1]], "classes": [0]}}, r"expected states -1..0"),
        ({"name": "automaton", "args": {"after": [[0]], "classes": [1]}}, r"classes: expected 0..0"),
        ({"name": "automaton", "args": {"after": [[-1]], "classes": [0]}}, r"no token goes on from state \[0\]"),
        ({"name": "automaton", "args": {"after": [0], "classes": [0]}}, "expected integers with 2 axes"),
        ({"name": "automaton", "args": {"start": 1}}, "automaton.start"),
        (Automaton.of(NUMBERS, Vocabulary((*PIECES, *[b""] * 40), (60,))), "the model has 60"),
        (Constrained(Masks(NUMBERS, Vocabulary((*PIECES, *[b""] * 40), (60,)))), "the model has 60"),
        ({"name": "constraint", "args": {"constraint": "json"}}, "constraint: expected a"),
    ],
)
def test_bad_arguments_are_one_line(value, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_all([value], SIZE)
    assert "\n" not in str(error.value)


class Replayed(Matched):
    """An adapter whose matcher is the text so far; it counts what it reads."""

    def __init__(self):
        super().__init__(VOCABULARY, b"")
        self.read = 0

    def _consumed(self, matcher, token):
        self.read += 1
        return matcher + VOCABULARY.token_bytes[token]

    def _mask(self, matcher):
        return VOCABULARY.allowed(NUMBERS, run(NUMBERS, matcher))


@pytest.mark.parametrize("kept", [1, 3, 1024])
def test_what_is_kept_is_bounded_and_made_again(kept, monkeypatch):
    """Every prefix is met, then asked for once more, in any order."""
    monkeypatch.setattr(constraint, "KEPT", kept)
    matched, masks, rng = Replayed(), Masks(NUMBERS, VOCABULARY), np.random.default_rng(0)
    states = [(matched.start, masks.start)]
    for _ in range(60):
        theirs, mine = states[rng.integers(len(states))]
        token = int(rng.choice(np.flatnonzero(masks.allowed(mine))))
        if token != END:
            states.append((matched.advance(theirs, token), masks.advance(mine, token)))
    assert len({theirs for theirs, _ in states}) > 20
    for i in rng.permutation(len(states)):
        np.testing.assert_array_equal(matched.allowed(states[i][0]), masks.allowed(states[i][1]))
        assert len(matched._masks) <= kept and len(masks._masks) <= kept and len(matched._matchers) <= kept
    assert matched.read < 60 if kept == 1024 else matched.read > 60


def test_threads_share_a_constraint():
    """Prefixes get one number each, though all threads meet them at once."""
    matched, start = Replayed(), threading.Barrier(8)
    tokens = [VOCABULARY.token_bytes.index(bytes([b])) for b in b"12345678" * 20]

    def walk(_):
        start.wait()
        state, states = matched.start, []
        for token in tokens:
            state = matched.advance(state, token)
            states.append(state)
        return states

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(walk, range(8)))
    assert all(one == list(range(1, len(tokens) + 1)) for one in found) and matched.read == len(tokens)


def test_a_grammar_that_the_vocabulary_cannot_go_on_with_is_one_line():
    """At once where it cannot begin, and from inside the compiled loop where it comes to that only there."""
    spec = tiny(vocab_size=3, repeats=1)
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    vocabulary = Vocabulary((b"", b"a", b"b"), (0,))
    with pytest.raises(ConfigError, match="next is one of b'c'"):
        Constrained(Masks(Grammar.from_text("S ::= 'c' S?"), vocabulary))
    for text, wanted in (("S ::= 'a' 'c' S?", "c"), ("S ::= 'a' 'b' 'd' S?", "d")):
        chain = [Constrained(Masks(Grammar.from_text(text), vocabulary))]
        for stream in (None, lambda pieces: None):
            with pytest.raises(ConfigError, match=f"no token .* next is one of b'{wanted}'") as error:
                jaxlm.generate(model, params, np.array([[1], [2]]), 5, processors=chain, stream=stream)
            assert "\n" not in str(error.value)
