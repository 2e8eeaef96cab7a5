"""Token healing: what a prompt keeps, and what its next token must begin with."""

from __future__ import annotations

from jaxlm.decode.token_healing import take_back
from jaxlm.tokenize.bpe import BpeTokenizer
from tests.golden.tokenization.data import files


def test_token_healing(golden):
    for file in files(golden, "segmentation_variants"):
        case = file["token_healing"]
        tokenizer = BpeTokenizer(tuple(map(tuple, case["merges"])), split=())
        assert case["items"]
        for item in case["items"]:
            assert tokenizer.encode(item["prompt"]).tolist() == item["ids"]
            kept, text, allowed = take_back(tokenizer, item["prompt"], usable_ids=case["usable_ids"])
            assert (kept, text.decode(), allowed.tolist()) == (item["kept"], item["must_start_with"], item["allowed"])
