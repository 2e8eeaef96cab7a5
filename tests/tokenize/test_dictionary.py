"""LZW's dictionary against the rule in words, and the longest match."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.dictionary import DictionaryTokenizer, lempel_ziv


def naive(texts, most):
    """Read the shortest phrase not in the dictionary, add it, go on from its last byte."""
    known = {bytes([b]) for b in range(256)}
    added = []
    for text in texts:
        at = 0
        while len(added) < most:
            new = next((text[at:end] for end in range(at + 1, len(text) + 1) if text[at:end] not in known), None)
            if new is None:
                break
            known.add(new)
            added.append(new)
            at += len(new) - 1
    return added


@given(st.lists(st.lists(st.sampled_from(b"ab\xf0"), max_size=60).map(bytes), max_size=3), st.integers(0, 30))
def test_lempel_ziv(texts, most):
    assert lempel_ziv(texts, most) == naive(texts, most)
    assert lempel_ziv(texts) == naive(texts, 10**9)


def test_the_longest_phrase_at_every_place():
    tokenizer = DictionaryTokenizer(("ab", "abab", "ba", "aba"), ())
    assert [tokenizer.token_bytes[i] for i in tokenizer.encode("ababac")] == [b"abab", b"a", b"c"]
    assert [tokenizer.token_bytes[i] for i in tokenizer.encode(b"abaab\xff")] == [b"aba", b"ab", b"\xff"]
    assert DictionaryTokenizer.train(["ababab"]).pieces == ("ab", "ba", "aba")
    assert DictionaryTokenizer.train([b"\xff\xff\xff"], specials=()).token_bytes[256:] == (b"\xff\xff",)


def test_texts_that_end_too_early():
    with pytest.raises(ConfigError, match="vocab_size can be at most 262"):
        DictionaryTokenizer.train(["ababab"], 263)
