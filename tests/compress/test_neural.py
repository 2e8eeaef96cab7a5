"""A language model in the coders: exact both ways, as long as its loss says, the same integers whatever was asked."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.compress import equal_info, range_coder, rational
from jaxlm.compress.context_model import PRIME
from jaxlm.compress.neural import NeuralModel, identity
from jaxlm.core.errors import ConfigError
from jaxlm.model import decoder

BOS, SIZE, ROOM = 12, 10, 40
SPEC = jaxlm.ModelSpec(
    vocab_size=14,
    width=16,
    layers=(jaxlm.Group((jaxlm.Block(mixer=jaxlm.Attention(heads=2)),), 2),),
)


@pytest.fixture(scope="module")
def model():
    model = jaxlm.LanguageModel(SPEC)
    params = jaxlm.init(model, jax.random.key(0))
    return model, jax.tree.map(lambda p: p * 1.5, params)  # surer of itself than at its initial scale


def neural(model, **settings):
    return NeuralModel(*model, [BOS], SIZE, **{"room": ROOM, **settings})


def texts(number, longest=ROOM):
    draws = np.random.default_rng(number)
    return [draws.integers(0, SIZE, n).tolist() for n in draws.integers(0, longest + 1, number)]


def information(model, text):
    """-sum log2 p of each symbol among the first ``SIZE`` ids, by one pass over the whole text; a rare one is raised to
    what the coder can give it."""
    logits = np.asarray(decoder.forward(SPEC, model[1], np.array([[BOS, *text]])).logits, np.float64)[0, :-1, :SIZE]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = p * (1 - SIZE / range_coder.TOTAL) + 1 / range_coder.TOTAL
    return float(-np.log2(p[np.arange(len(text)), text]).sum())


def test_the_fast_coder_takes_the_models_bits_and_gives_the_text_back(model):
    some = [*texts(4), [], list(range(SIZE)) * 4]
    codes = range_coder.encode(some, neural(model).batch)
    found = range_coder.decode(codes, [len(text) for text in some], neural(model).batch)  # another object
    assert [row.tolist() for row in found] == some
    bits = information(model, some[-1])
    assert bits > 2 * len(some[-1]) and bits * 0.99 <= 8 * len(codes[-1]) <= bits * 1.01 + 8


def test_the_exact_coders(model):
    coder, text = neural(model, total=PRIME), texts(1, 30)[0] + [3, 3, 3]
    code = rational.encode(coder, text)
    assert rational.decode(neural(model, total=PRIME), code, len(text)) == text
    windows = equal_info.encode_windows(coder, text)
    assert equal_info.decode_windows(neural(model, total=PRIME), windows) == text
    cells = equal_info.encode_self_delimiting(coder, text)
    if cells is not None:
        assert equal_info.decode_self_delimiting(neural(model, total=PRIME), cells) == text
    assert max(window.cell for window in windows) < 1 << 16 and len(windows) < len(text)


def test_the_same_integers_whatever_was_asked_before(model):
    coder, fresh = neural(model), neural(model)
    draws = np.random.default_rng(0)
    prefixes = [draws.integers(0, SIZE, (3, t)) for t in (5, 0, 2, 7)]
    first = [coder.batch(one) for one in prefixes]
    for one, found in zip(reversed(prefixes), reversed(first), strict=True):
        np.testing.assert_array_equal(fresh.batch(one), found)
        assert found.shape == (3, SIZE) and (found.sum(-1) == coder.total).all() and found.min() >= 1
    longer = np.concatenate([prefixes[3], prefixes[2]], 1)
    step = np.stack([fresh.batch(longer[:, :t]) for t in range(10)])
    np.testing.assert_array_equal(coder.batch(longer), step[9])
    np.testing.assert_array_equal(fresh.batch(longer), step[9])


def test_stacked_or_not(model):
    unstacked = jax.jit(decoder.unstack)(model[1])
    prefix = np.zeros((3, 4), int)
    np.testing.assert_array_equal(neural((model[0], unstacked)).batch(prefix), neural(model).batch(prefix))


def test_a_probe_and_an_identity_tell_models_apart(model):
    other = jax.tree.map(lambda p: p * (1 + 1e-6), model[1])
    assert neural(model).probe(3) == neural(model).probe(3)
    assert neural(model).probe(3) != neural((model[0], jax.tree.map(lambda p: p * 1.01, model[1]))).probe(3)
    assert identity(*model) == identity(*model)
    spec = dataclasses.replace(SPEC, logit_multiplier=2.0)
    assert len({identity(*model), identity(model[0], other), identity(jaxlm.LanguageModel(spec), model[1])}) == 3


def blind(model):
    """A model whose probabilities are no numbers."""
    return model[0], jax.tree.map(lambda p: p * np.nan, model[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: NeuralModel(*m, [], SIZE), "says nothing of a first symbol; give a BOS"),
        (lambda m: NeuralModel(*m, [BOS], 15), "15 symbols, but the model has a vocabulary of 14"),
        (lambda m: NeuralModel(*m, [14], 10), "token \\[14\\] of the head is outside the vocabulary of 14"),
        (lambda m: neural(m, total=9), "10 symbols need a total of at least as many, got 9"),
        (lambda m: neural(m, room=0), "room for at least one symbol"),
        (lambda m: neural(m, room=5).batch(np.zeros((3, 5), int)), "was given room for 5"),
        (lambda m: neural(m).batch(np.full((3, 1), 10)), "symbol \\[10\\] is outside the coder's alphabet 0..9"),
        (lambda m: neural(m).batch(np.zeros(3, int)), "expected prefixes \\[B, t\\]"),
        (lambda m: neural(blind(m)).batch(np.zeros((3, 0), int)), "probabilities must be finite"),
    ],
)
def test_bad_input(model, call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_more_room_than_positions(model):
    learned = jaxlm.Attention(heads=2, position={"name": "learned", "args": {"size": 16}})
    short = dataclasses.replace(SPEC, layers=(jaxlm.Group((jaxlm.Block(mixer=learned),)),))
    with pytest.raises(ConfigError, match="beyond the 16 positions"):
        NeuralModel(jaxlm.LanguageModel(short), model[1], [BOS], SIZE, room=17)
