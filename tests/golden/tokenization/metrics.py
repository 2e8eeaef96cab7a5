"""Rates, entropies and classes of small vocabularies."""

from __future__ import annotations

import pytest

from jaxlm.tokenize import metrics
from jaxlm.tokenize.bpe import BpeTokenizer
from tests.golden.tokenization.data import files


def test_tokenizer_metrics(golden):
    for data in files(golden, "tokenizer_metrics"):
        for case in data["cases"]:
            tokenizer = BpeTokenizer(tuple(map(tuple, case["merges"])), split=("space",), specials=())
            assert tokenizer.vocab_size == case["vocab_size"]
            assert [tokenizer.encode(text).tolist() for text in case["texts"]] == case["tokens"]
            used = metrics.usage(tokenizer, case["texts"])
            assert used.tokens == case["tokens_total"] and used.observed == case["observed_types"]
            assert len(used.unused) == case["unused_in_texts"]
            close = lambda value: pytest.approx(value, rel=1e-9, abs=1e-12)
            size = tokenizer.vocab_size
            assert metrics.shannon_entropy(used.counts) == close(case["shannon_bits"])
            assert metrics.efficiency(used.counts, 1) == close(case["shannon_efficiency_observed"])
            assert metrics.efficiency(used.counts, 1, size) == close(case["shannon_efficiency_full_vocab"])
            for order, bits in case["renyi_entropy"].items():
                a = float(order)
                assert metrics.renyi_entropy(used.counts, a) == close(bits)
                assert metrics.efficiency(used.counts, a) == close(case["renyi_efficiency_observed"][order])
                assert metrics.efficiency(used.counts, a, size) == close(case["renyi_efficiency_full_vocab"][order])
            assert used.fertility == close(case["fertility_tokens_per_word"])
            assert used.chars_per_token == close(case["chars_per_token"])
            assert used.bytes_per_token == close(case["bytes_per_token"])
            rates = metrics.word_rates(tokenizer, case["texts"])
            assert rates == close((case["single_token_word_rate"], case["split_word_rate"]))
            pieces = tokenizer.token_bytes
            assert metrics.classes(pieces) == case["vocab_classes"]
            assert metrics.scripts(pieces) == case["alphabetic_scripts"]
            assert metrics.starts_with_space(pieces) == case["starts_with_space"]
            assert {str(n): count for n, count in metrics.lengths(pieces).items()} == case["token_length_bytes"]
