"""Three laws for the best size of a vocabulary."""

from __future__ import annotations

import pytest

from jaxlm.tokenize import vocabulary_size
from tests.golden.tokenization.data import files


def test_vocab_scaling(golden):
    for data in files(golden, "vocab_scaling"):
        assert data["rows"] and data["tokens_per_char"]
        close = lambda value: pytest.approx(value, rel=1e-9)
        for row in data["rows"]:
            n = row["non_vocab_params"]
            width, budget = vocabulary_size.embedding_size(n), vocabulary_size.flops_for(n)
            assert width == row["d_model"] and budget == close(row["flops"])
            first, second = vocabulary_size.by_isoflops(budget), vocabulary_size.by_derivative(n)
            assert (first, first / width) == close((row["approach1_vocab_params"], row["approach1_vocab"]))
            assert (second, second / width) == close((row["approach2_vocab_params"], row["approach2_vocab"]))
            third = vocabulary_size.Law().best_vocab(n)
            expected = (row["approach3_vocab"], row["approach3_vocab_params"])
            assert (third, third * width) == pytest.approx(expected, rel=1e-4)  # a root of rounded coefficients
            assert third == vocabulary_size.Law().best_vocab(n, width, budget)
        for row in data["tokens_per_char"]:
            assert vocabulary_size.tokens_per_char(row["vocab"]) == close(row["tokens_per_char"])
