"""Covers of a prefix, by the encodings that decide which are valid and by the exhaustive search."""

from __future__ import annotations

from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.covers import covers, is_canonical
from tests.golden.tokenization.data import files


def test_cover_encodings(golden):
    cases = [case for file in files(golden, "cover_encodings") for case in file["cases"]]
    assert cases
    for case in cases:
        tokenizer = BpeTokenizer(tuple(map(tuple, case["merges"])), split=())
        assert case["items"]
        for item in case["items"]:
            valid = covers(tokenizer, item["prefix"], case["usable_ids"])
            assert valid == sorted(map(tuple, item["valid"])), item["prefix"]
            every = covers(tokenizer, item["prefix"], case["usable_ids"], valid=False)
            assert len(every) == len(set(every)) == item["n_all"]
            assert [cover for cover in every if is_canonical(tokenizer, cover)] == valid
            assert not {*map(tuple, item["invalid_sample"])} - ({*every} - {*valid})
