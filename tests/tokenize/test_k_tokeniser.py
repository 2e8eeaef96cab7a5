"""Typed vocabularies: segmentations against brute force, the choice of a type, files, bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxlm.tokenize
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.k_tokeniser import KTokeniser

TERMS = {"drug": ["aspirin", "heparin", "naloxone"] * 2, "disease": ["nephritis", "arthritis", "asthma"] * 2}
TEXTS = ["he took aspirin and heparin daily.", "arthritis, nephritis and asthma. No aspirin!"] * 3
BASE = BpeTokenizer.train(TEXTS, 275)
FERTILITY = KTokeniser.train(TEXTS, 295, base=BASE, terms=TERMS)
ENTROPY = dataclasses.replace(FERTILITY, choice="entropy")
BOTH = pytest.mark.parametrize("tokenizer", [FERTILITY, ENTROPY], ids=["fertility", "entropy"])


@BOTH
@given(
    data=st.one_of(
        st.binary(max_size=40),
        st.lists(st.sampled_from("aspirin asthma . ! \n x".split(" ")), max_size=9).map(lambda w: " ".join(w).encode()),
    )
)
def test_round_trip(tokenizer, data):
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data and (len(ids) == 0 or ids.max() < tokenizer.vocab_size)


def test_ids():
    """The base's stay; each type has as many subwords, none of which the base has."""
    assert FERTILITY.types == ("drug", "disease") and [len(p) for p in FERTILITY.pieces] == [10, 10]
    assert FERTILITY.token_bytes[: BASE.vocab_size] == BASE.token_bytes
    assert FERTILITY.special_ids == BASE.special_ids
    new = FERTILITY.token_bytes[BASE.vocab_size :]
    assert len(set(new)) == len(new) and not set(new) & set(BASE.token_bytes)
    assert KTokeniser(base=BASE).encode(TEXTS[0]).tolist() == BASE.encode(TEXTS[0]).tolist()


def test_a_sentence_takes_the_type_with_the_fewest_tokens():
    text = "he took aspirin and heparin. arthritis nephritis asthma."
    kinds = FERTILITY.chosen_types(text)
    assert [word for word, _ in kinds] == [
        w.encode() for w in ("he", " took", " aspirin", " and", " heparin.", " arthritis", " nephritis", " asthma.")
    ]
    assert {kind for _, kind in kinds[:5]} == {"drug"} and {kind for _, kind in kinds[5:]} == {"disease"}
    by_type = [sum(len(FERTILITY.candidates(word)[k]) for word, _ in kinds[:5]) for k in range(3)]
    assert by_type[1] == min(by_type) < by_type[0]
    assert len(FERTILITY.encode(text)) < len(BASE.encode(text))
    assert {kind for _, kind in FERTILITY.chosen_types("qq zz")} == {""}  # a tie goes to the base


def test_a_word_takes_the_segmentation_of_least_information():
    mixed = "aspirin arthritis he"
    found = ENTROPY.chosen_types(mixed)
    assert [kind for _, kind in found][:2] == ["drug", "disease"]  # within one sentence
    for word, kind in found:
        costs = [sum(ENTROPY.information[i] for i in ids) for ids in ENTROPY.candidates(word)]
        assert costs[["", *ENTROPY.types].index(kind)] == min(costs)
    shares = 2.0 ** -np.array(ENTROPY.information)
    assert shares.sum() == pytest.approx(1)


@BOTH
def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.json")
    assert jaxlm.tokenize.load(tmp_path / "t.json") == tokenizer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KTokeniser(choice="length"), "unknown KTokeniser.choice 'length'"),
        (lambda: KTokeniser(types=("a",)), "0 vocabularies for 1 types"),
        (lambda: KTokeniser(types=("a", "a"), pieces=(("xy",), ("xz",))), "repeated"),
        (lambda: KTokeniser(types=("a",), pieces=(("x",),)), "fewer than two bytes"),
        (lambda: KTokeniser(base=ByteTokenizer(), information=(1.0,)), "expected 259 numbers or none, got 1"),
        (lambda: KTokeniser(information=(-1.0,) * 259), "finite numbers >= 0"),
        (lambda: KTokeniser.train(TEXTS, 259), "must be at least 260"),
        (lambda: KTokeniser.train(TEXTS, 300, terms={"a": ["x"]}), "type 'a' have no subword"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
