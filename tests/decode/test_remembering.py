"""A token model that keeps states says what full passes say, whatever it is asked and in whatever order."""

from __future__ import annotations

import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.decode import remembering
from jaxlm.decode.remembering import Remembering, token_model
from jaxlm.decode.token_model import FullPass
from jaxlm.model.spec import Block, Group
from tests.tiny import mostly_slow, params_of, tiny

MAMBA = Block({"name": "mamba2", "args": {"state": 4, "head_dim": 4, "chunk": 4}}, ffn=None)
ATTENTION = Block({"name": "attention", "args": {"heads": 2, "position": "rotary"}}, ffn=None)
MODELS = {
    "rotary": tiny({"position": "rotary"}, repeats=1),
    "alibi": tiny({"position": "alibi"}, repeats=1),
    "forgetting": tiny({"position": "forgetting"}, repeats=1),
    "window": tiny({"position": "rotary", "mask": {"name": "window", "args": {"size": 5}}}, repeats=1),
    "hybrid": tiny({}, layers=(Group((MAMBA, ATTENTION)),)),
}


def made(name):
    spec = MODELS[name]
    return jaxlm.LanguageModel(spec), params_of(spec)


def close(remembering, full, sequences):
    np.testing.assert_allclose(remembering(sequences), full(sequences), atol=2e-5)


@pytest.mark.parametrize("name", mostly_slow(MODELS, "hybrid"))
def test_it_says_what_full_passes_say(name):
    """Of texts that grow by a token, lose some and get others, begin each other, repeat, are new, and are many."""
    model, params = made(name)
    one, full, rng = Remembering(model, params, kept=6), FullPass(model, params), np.random.default_rng(0)
    token = lambda: int(rng.integers(MODELS[name].vocab_size))
    texts = [(1, 2), (1,), (1, 2, 3), (4,)]
    for _ in range(4):
        close(one, full, texts)
        texts = [(*text, token()) for text in texts]
    close(one, full, [texts[0][:3], texts[0][:-1], (*texts[0][:3], token(), token()), texts[0], texts[0]])
    long = tuple(token() for _ in range(40))  # beyond the room that there was
    close(one, full, [long, long[:20], (*long[:30], token()), (*long[:30], token(), token())])
    close(one, full, [(*texts[i % 4], i) for i in range(9)])  # more than are kept
    close(one, full, [*texts, (*long, 3)])


def test_a_token_more_costs_a_token(monkeypatch):
    """A text of n tokens is run in n; what texts have in common, once."""
    model, params = made("rotary")
    sizes, step = [], remembering._step

    def counted(*arguments):
        sizes.append(int(arguments[-1].sum()))
        return step(*arguments)

    monkeypatch.setattr(remembering, "_step", counted)
    one, text = Remembering(model, params), tuple(range(12))
    for stop in range(8, 13):
        one([text[:stop]])
    assert sizes == [8, 1, 1, 1, 1]
    sizes.clear()
    one([(*text, 3), (*text[:11], 5), (*text, 4, 4)])
    assert sum(sizes) == 4
    sizes.clear()
    other = tuple(range(12, 24))
    one([(*other, 1), (*other, 2), (*other, 3)])
    assert sum(sizes) == 15


def test_a_model_that_cannot_keep_states_is_run_whole():
    spec = tiny({"position": {"name": "rotary", "args": {"scaling": "dynamic"}}}, repeats=1)
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    assert type(token_model(model, params)) is FullPass
    assert type(token_model(*made("rotary"))) is Remembering
    with pytest.raises(ConfigError, match="Remembering: position 'rotary' scales with the length"):
        Remembering(model, params)


def test_bad_input():
    model, params = made("rotary")
    with pytest.raises(ConfigError, match="expected a positive number of states to keep, got 0"):
        Remembering(model, params, kept=0)
    with pytest.raises(ConfigError, match="the model says nothing about a first token"):
        Remembering(model, params)([(1,), ()])
