"""grammar_masks: the exact sets of tokens allowed after each prefix, by derivation and by enumeration."""

from __future__ import annotations

from typing import Any

from jaxlm.core.errors import ConfigError
from jaxlm.decode.grammar import automaton
from jaxlm.decode.grammar.automaton import DEAD
from jaxlm.decode.grammar.constraint import Masks
from jaxlm.decode.grammar.context_free import Grammar
from jaxlm.decode.grammar.earley import tabulate
from jaxlm.decode.grammar.vocabulary import Vocabulary
from tests.golden.tokenization.data import files


def test_allowed_tokens(golden):
    for data in files(golden, "grammar_masks"):
        assert data["cases"]
        for case in data["cases"]:
            tokens = case["tokens"]
            vocabulary = Vocabulary((*(token.encode() for token in tokens), b""), (len(tokens),))
            languages: list[Any] = [Grammar.from_rules(case["rules"], case["start"])]
            try:  # where nesting is bounded, the table must say the same
                languages.append(tabulate(languages[0], max_states=200))
            except ConfigError as error:
                assert "more than 200 states" in str(error)
            for language in languages:
                masks = Masks(language, vocabulary)
                for item in case["items"]:
                    state = automaton.run(masks.states, item["prefix"].encode())
                    assert state != DEAD, item
                    allowed = vocabulary.allowed(masks.states, state)
                    assert [token for token, good in zip(tokens, allowed, strict=False) if good] == item["allowed"]
                    assert allowed[-1] == item["may_end"] == masks.states.accepts(state)
                for prefix in case["dead_prefixes"]:
                    assert automaton.run(masks.states, prefix.encode()) == DEAD, prefix
