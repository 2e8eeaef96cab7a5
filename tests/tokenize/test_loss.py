"""Losses: bits per byte by hand, and what must not be compared."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import EOS
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.loss import Loss, PerToken, bits_per_byte, digest

BYTE = ByteTokenizer()
AB = BpeTokenizer(((97, 98),))
A, B = Loss(10.0, 5, 8, "x"), Loss(9.0, 3, 9, "x")
OTHER = Loss(12.0, 2, 8, "y")


def test_bits_per_byte_of_uniform_guesses():
    assert bits_per_byte(7 * math.log(256), 7) == pytest.approx(8)
    ids = BYTE.encode("äb", eos=True)
    loss = Loss.of(BYTE, ids, np.full(len(ids), math.log(2)))
    assert (loss.tokens, loss.bytes) == (4, 3)  # the end is predicted, and has no bytes
    assert loss.bits_per_byte == pytest.approx(4 / 3) and loss.per_token == pytest.approx(math.log(2))


def test_a_digest_names_the_bytes_of_the_ids():
    assert digest(BYTE) == digest(ByteTokenizer()) == digest(BpeTokenizer())
    others = [BYTE, AB, BpeTokenizer(((98, 97),)), ByteTokenizer(specials=()), ByteTokenizer(specials=(EOS,))]
    assert len({digest(tokenizer) for tokenizer in others}) == len(others)


def test_within_a_vocabulary_losses_are_numbers():
    assert A < B and A <= B and B > A and B >= A and not B < A and A != B
    assert (A - B, A / B) == (2.0 - 3.0, 2 / 3)
    assert A.per_token == 2.0 and A.per_token < 2.5 < B.per_token and A.per_token - 1 == 1.0
    assert 3 - A.per_token == 1.0 and sorted([B, A]) == [A, B] and f"{A.per_token:.2f}" == "2.00"
    assert A + B == Loss(19.0, 8, 17, "x") and len({A, B, A}) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: A < OTHER,
        lambda: A <= OTHER,
        lambda: A > OTHER,
        lambda: A >= OTHER,
        lambda: A - OTHER,
        lambda: A / OTHER,
        lambda: min(A, OTHER),
        lambda: A.per_token < OTHER.per_token,
        lambda: A.per_token <= OTHER.per_token,
        lambda: A.per_token > OTHER.per_token,
        lambda: A.per_token >= OTHER.per_token,
        lambda: A.per_token == OTHER.per_token,
        lambda: A.per_token != OTHER.per_token,
        lambda: A.per_token - OTHER.per_token,
        lambda: A.per_token / OTHER.per_token,
        lambda: copy.deepcopy(A.per_token) < OTHER.per_token,
        lambda: max([A, OTHER], key=lambda loss: loss.per_token),
    ],
)
def test_between_vocabularies_only_bits_per_byte(call):
    with pytest.raises(ConfigError, match=r"different vocabularies \(.*\) cannot be compared; compare bits_per_byte"):
        call()
    assert A.bits_per_byte < OTHER.bits_per_byte


def test_the_same_vocabulary_cut_differently_is_seen():
    sampled = Loss(10.0, 6, 8, "x")
    with pytest.raises(ConfigError, match="8 bytes cut into 5 and into 6 tokens"):
        _ = A < sampled


@given(st.text(min_size=1), st.floats(0.01, 10))
def test_bits_per_byte_do_not_depend_on_the_cuts(text, nats):
    """The same probability of a text in two vocabularies: equal bits per byte, losses per token that cannot meet."""
    text = f"ab{text}"
    losses = []
    for tokenizer in (BYTE, AB):
        ids = tokenizer.encode(text)
        losses.append(Loss.of(tokenizer, ids, np.full(len(ids), nats / len(ids))))
    assert losses[0].bits_per_byte == pytest.approx(losses[1].bits_per_byte)
    with pytest.raises(ConfigError, match="different vocabularies"):
        _ = losses[0] - losses[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bits_per_byte(1.0, 0), "of 0 bytes"),
        (lambda: Loss(math.nan, 1, 1, "x"), "Loss.nats: expected a finite sum, got nan"),
        (lambda: Loss(1.0, 0, 1, "x"), "Loss.tokens: expected at least 1, got 0"),
        (lambda: Loss(1.0, 1, -1, "x"), "Loss.bytes: expected at least 1, got -1"),
        (lambda: Loss(1.0, 1, 1, ""), "expected the digest"),
        (lambda: Loss.of(BYTE, [65], [1.0, 2.0]), r"\(1,\) tokens and \(2,\) losses"),
        (lambda: A + OTHER, "cannot be pooled"),
        (lambda: A < 3.0, "expected a Loss to compare with, got float 3.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_number_that_knows_where_it_is_from():
    assert isinstance(A.per_token, PerToken) and type(A.bits_per_byte) is float and A.per_token.vocabulary == "x"
