"""The benchmark of tokenizers: that contestants do the same work, and that the table has them."""

from __future__ import annotations

import pytest

from experiments.suites import tokenize as suite
from jaxlm.core import registry
from jaxlm.core.errors import ConfigError


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"BYTES": 20_000, "VOCABULARY": 500, "LANES": 3, "SYMBOLS": 5, "ALONE": 300, "SEEN": 6, "ROWS": 2}
    small |= {"NEURAL_LANES": 2, "NEURAL_SYMBOLS": 3, "ROOM": 8}
    for name, value in small.items():
        monkeypatch.setattr(suite, name, value)


def test_the_text_is_as_long_as_asked() -> None:
    texts = suite.sample("stdlib:", 30_000)
    assert sum(map(len, texts)) == 30_000 and all(texts)


def test_every_method_that_is_trained_takes_part() -> None:
    trained = set(registry.methods("tokenizer")) - {"byte", "hf", "sentence_piece", "tiktoken", "k_tokeniser"}
    assert {title.partition(",")[0] for title in suite.METHODS} == trained


def test_libraries_give_the_same_ids(tiny) -> None:
    """Of merges learned here; and the library's own training learns as many."""
    for name in ("tokenizers", "tiktoken"):
        pytest.importorskip(name)
    texts = suite.sample("stdlib:", suite.BYTES)
    ours, theirs = (contestant.run(1)[0] for contestant in suite.bpe_training(texts, []))
    assert ours.vocab_size == theirs.get_vocab_size() == suite.VOCABULARY
    contestants = suite.bpe_encoding(ours, texts, [])
    assert [one.name for one in contestants] == ["jaxlm", "jaxlm, again", "tokenizers", "tiktoken"]
    suite.same_ids({one.name: one.run(1) for one in contestants})


def test_other_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="theirs does not give the ids of jaxlm for text 1"):
        suite.same_ids({"jaxlm": [[[1], [2, 3]]], "theirs": [[[1], [2, 4]]]})


def test_unigram_pieces_are_those_of_sentencepiece(tiny) -> None:
    pytest.importorskip("sentencepiece")
    texts = suite.sample("stdlib:", suite.BYTES)
    ours, theirs = (contestant.run(1)[0] for contestant in suite.unigram_encoding(texts))
    one, other = (sum(map(len, ids)) for ids in (ours, theirs))
    assert abs(one - other) < 0.02 * other  # it does not cut runs of spaces as the rule "space" does


@pytest.mark.slow
def test_table(tiny) -> None:
    results = suite.run(1, 1, 1)
    text = suite.table(results)
    for name in (
        "bpe training",
        "tiktoken",
        "unigram encoding",
        *suite.METHODS,
        "self-delimiting",
        "coding by a model",
        "tree",
    ):
        assert name in text
