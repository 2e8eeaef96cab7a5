"""Unconditional token forcing on a model written by hand: a chain of tokens that it is sure of, and noise."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.eval.token_forcing import beginning_scores, recurring_sequences, search
from jaxlm.model import decoder
from tests.tiny import params_of, tiny

SIZE, BOS = 48, 0
SECRET = [7, 21, 3, 40, 11, 30, 5]


@pytest.fixture(scope="module")
def planted():
    """(model, params) with p(next | token) by a table: layers that add nothing, and one dimension for each token."""
    spec = tiny(vocab_size=SIZE, width=SIZE)
    params = params_of(spec)
    for path in (("mixer", "out"), ("ffn", "out")):
        block = params["group_0"]["block_0"][path[0]]
        block[path[1]] = jnp.zeros_like(block[path[1]])
    table = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
    for here, after in itertools.pairwise(SECRET):
        table[here, after] = 9.0
    params["embed"]["table"] = jnp.eye(SIZE) * SIZE**0.5
    params["final_norm"]["scale"] = jnp.ones(SIZE)
    params["head"]["kernel"] = jnp.asarray(table / SIZE**0.5)
    return jaxlm.LanguageModel(spec), params, jax.nn.softmax(jnp.asarray(table), axis=-1)


def test_scores_are_the_largest_probabilities(planted):
    model, params, chances = planted
    scores = beginning_scores(model, params, [BOS], batch_size=20)  # the last batch is filled up
    np.testing.assert_allclose(scores, chances.max(-1), rtol=1e-4)
    some = beginning_scores(model, params, [BOS], tokens=[5, 3], batch_size=20)
    np.testing.assert_allclose(some[[3, 5]], chances.max(-1)[jnp.array([3, 5])], rtol=1e-4)
    assert np.isneginf(np.delete(some, [3, 5])).all()


def test_scores_are_the_models(planted):
    """With real layers: against a pass over each pair alone."""
    model, _, _ = planted
    params = params_of(model.spec, seed=3)
    scores = beginning_scores(model, params, [BOS, 4], batch_size=48)
    for token in (0, 9, 47):
        logits = decoder.forward(model.spec, params, jnp.array([[BOS, 4, token]])).logits[0, -1]
        np.testing.assert_allclose(scores[token], jax.nn.softmax(logits).max(), rtol=1e-4)


def test_the_secret_comes_out(planted):
    model, params, chances = planted
    found = search(model, params, [BOS], top=10, max_new_tokens=len(SECRET) + 2, least=3, batch_size=10)
    assert set(found.beginnings[: len(SECRET) - 1]) == set(SECRET[:-1])  # each but the last is sure of the next
    assert (found.rank_of(SECRET[1:]) or 99) <= len(SECRET) and found.rank_of([1, 1, 1, 2]) is None
    greedy = np.asarray(jnp.argmax(chances, -1))
    for text in found.texts:
        assert all(after == greedy[here] for here, after in itertools.pairwise(text))
    tail = found.recurring[0]
    assert list(tail.tokens[:2]) == SECRET[-3:-1] or set(SECRET[2:6]) <= {t for r in found.recurring for t in r.tokens}
    assert len(tail.beginnings) >= 4
    assert any(set(SECRET[2:]) <= set(r.tokens) for r in found.recurring)


def test_recurring_sequences_by_hand():
    texts = [
        [9, 1, 2, 3, 4, 5, 8],
        [1, 2, 3, 4, 5, 6, 6],
        [7, 7, 7, 7, 2, 3, 4],
        [0, 7, 7, 7, 0, 0, 0],
    ]
    found = {r.tokens: r.beginnings for r in recurring_sequences(texts, 3)}
    assert found == {(2, 3, 4): (9, 1, 7), (1, 2, 3, 4, 5): (9, 1)}  # one token over and over is no sequence
    assert [len(r.beginnings) for r in recurring_sequences(texts, 3)] == [3, 2]
    assert recurring_sequences(texts, 6) == ()


def test_recurring_sequences_are_all_there():
    """Every window that two texts share lies in a reported sequence of their beginnings, and none is made up."""
    texts = np.random.default_rng(1).integers(0, 3, (6, 9))
    texts[:, 0] = np.arange(6)
    holds = lambda text, part: any(tuple(text[i : i + len(part)]) == part for i in range(len(text) - len(part) + 1))
    found = recurring_sequences(texts, 3)
    for r in found:
        assert r.beginnings == tuple(i for i in range(6) if holds(texts[i], r.tokens))
    for window in {tuple(text[i : i + 3]) for text in texts for i in range(7)}:
        places = {i for i in range(6) if holds(texts[i], window)}
        if len(places) > 1 and len(set(window)) > 1:
            assert any(holds(r.tokens, window) and places <= set(r.beginnings) for r in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top": 0}, "top: expected at least 1"),
        ({"least": 1}, "least: expected a sequence"),
        ({"batch_size": 0}, "batch_size"),
        ({"tokens": [48]}, r"tokens: token \[48\] is outside the vocabulary of 48"),
        ({"tokens": [0.5]}, "tokens: expected ids"),
        ({"before": [-1]}, r"before: token \[-1\]"),
    ],
)
def test_bad_input_is_one_line(planted, arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        search(*planted[:2], **{"before": [BOS], **arguments})
    assert "\n" not in str(error.value)
