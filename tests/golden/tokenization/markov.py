"""Switching source: closed forms, LZW's dictionary and BPE on its texts, and a unigram model over their tokens."""

from __future__ import annotations

import math

import pytest

from jaxlm.data.switching_source import SwitchingSource, unigram_bits_per_char
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.dictionary import DictionaryTokenizer
from tests.golden.tokenization.data import files


def cases(golden):
    found = [case for file in files(golden, "markov_tokenization") for case in file["cases"]]
    assert found
    return found


def test_closed_forms(golden):
    for case in cases(golden):
        source = SwitchingSource(case["k"], case["p_switch_from_0"], case["p_switch_from_1"])
        assert source.stationary == pytest.approx(case["stationary_p1"], rel=1e-12)
        assert source.entropy_rate == pytest.approx(case["entropy_rate_bits"], abs=1e-9)
        assert source.unigram_floor == pytest.approx(case["unigram_floor_bits"], abs=1e-9)


def test_lzw(golden):
    for case in cases(golden):
        text, dictionary = case["text"], case["lzw_dictionary"]
        phrases = [phrase for phrase in dictionary if len(phrase) > 1]
        alphabet = [phrase for phrase in dictionary if len(phrase) == 1]
        assert dictionary == alphabet + phrases
        tokenizer = DictionaryTokenizer.train([text], 256 + len(phrases), specials=())
        assert list(tokenizer.pieces) == phrases
        ids = tokenizer.encode(text)
        assert [dictionary.index(tokenizer.token_bytes[i].decode()) for i in ids] == case["lzw_greedy_tokens"]
        bits = unigram_bits_per_char(ids, len(text))
        assert math.isclose(bits, case["lzw_unigram_bits_per_char"], abs_tol=1e-9)


def test_bpe(golden):
    for case in cases(golden):
        text, merges = case["text"], case["bpe_merges"]
        tokenizer = BpeTokenizer.train([text], 256 + len(merges), split=(), specials=())
        assert [list(pair) for pair in tokenizer.merges] == merges
        ids = tokenizer.encode(text)
        assert ids.tolist() == case["bpe_tokens"]
        bits = unigram_bits_per_char(ids, len(text))
        assert math.isclose(bits, case["bpe_unigram_bits_per_char"], abs_tol=1e-9)
