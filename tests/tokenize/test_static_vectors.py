"""Vectors of tokens from text: against a dense computation, who is like whom, files."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.static_vectors import read_words, spread, static_vectors, subword_vectors, words_of

BYTE = ByteTokenizer(specials=())
TEXTS = ["abcabcabdx", "", "z", b"\xffab"]


def information(texts, window):
    """The matrix by its definition, pair by pair; rows and columns are bytes."""
    counts = np.zeros((256, 256))
    for text in texts:
        data = text.encode() if isinstance(text, str) else text
        for i, a in enumerate(data):
            for j, b in enumerate(data):
                if i != j and abs(i - j) <= window:
                    counts[a, b] += 1
    rows, columns = counts.sum(1), counts.sum(0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.log(counts * columns.sum() / np.outer(rows, columns))
    return np.where(out > 0, out, 0.0)


@pytest.mark.parametrize("window", [1, 3])
def test_against_the_definition(window):
    """Inner products of vectors are those of U sqrt(S) of the dense matrix, whatever the signs of U."""
    matrix = information(TEXTS, window)
    u, s, _ = np.linalg.svd(matrix)
    for dim in (2, 4, 40):
        ours = static_vectors(BYTE, TEXTS, dim, window=window)
        assert ours.shape == (256, dim) and ours.dtype == np.float64
        exact = u[:, :dim] * np.sqrt(s[:dim])
        np.testing.assert_allclose(ours @ ours.T, exact @ exact.T, atol=1e-5)
    unseen = [i for i in range(256) if i not in b"abcdxz\xff"]
    assert not ours[unseen].any() and not ours[ord("z")].any() and ours[ord("a")].any()


def test_tokens_in_like_places_are_alike():
    rng = np.random.default_rng(0)
    texts = [
        f"the {rng.choice(['cat', 'dog'])} eats, the {rng.choice(['one', 'two'])} of {rng.choice(['six', 'ten'])} ."
        for _ in range(400)
    ]
    tokenizer = BpeTokenizer.train(texts, 285)
    whole = static_vectors(tokenizer, texts, 16, window=2)
    (parts,) = subword_vectors([tokenizer], texts, 16, window=2)
    for vectors in (whole, parts):
        at = {w: vectors[tokenizer.encode(w)[-1]] for w in (" cat", " dog", " one", " two", " six")}
        cosine = lambda a, b, at=at: at[a] @ at[b] / np.linalg.norm(at[a]) / np.linalg.norm(at[b])
        assert cosine(" cat", " dog") > 0.8 > 0.5 > abs(cosine(" cat", " six"))


def test_two_tokenizers_share_a_space():
    texts = ["the quick brown fox and the slow brown bear " * 5]
    one, two = BpeTokenizer.train(texts, 284), BYTE
    vectors = subword_vectors((one, two), texts, 8)
    assert [v.shape for v in vectors] == [(one.vocab_size, 8), (256, 8)]
    whole = one.encode(" fox")
    assert len(whole) == 1
    np.testing.assert_allclose(vectors[0][whole[0]], vectors[1][ord("x")])  # the only word with an x
    np.testing.assert_array_equal(static_vectors(one, texts, 8), static_vectors(one, texts, 8))


def test_spread_is_the_mean_over_words_by_count():
    words = {b"ab": np.array([1.0, 0.0]), b"bc": np.array([0.0, 3.0])}
    rows = spread(BYTE, words, words_of(["ab ab", b" ab\nbc xyz"]), 2)
    np.testing.assert_allclose(rows[ord("a")], [1, 0])
    np.testing.assert_allclose(rows[ord("b")], [3 / 4, 3 / 4])
    np.testing.assert_allclose(rows[ord("c")], [0, 3])
    assert not rows[[ord("x"), ord(" ")]].any()


def test_word_files(tmp_path):
    (tmp_path / "v.vec").write_text("3 2\nnaïve 1 -2\nnew york 0.5 3e-1\n, 0 0\n", encoding="utf-8")
    words = read_words(tmp_path / "v.vec")
    assert list(words) == ["naïve".encode(), b"new york", b","]
    np.testing.assert_array_equal(words[b"new york"], [0.5, 0.3])
    (tmp_path / "w.vec").write_text("1 2\nx nan 1\n")
    for call, message in [
        (lambda: read_words(tmp_path / "w.vec"), "line 2 is not a word and 2 numbers"),
        (lambda: static_vectors(BYTE, ["a", "b"]), "no two tokens in a row"),
        (lambda: static_vectors(BYTE, ["ab"], 0), "dim and window of 1 or more, got 0 and 5"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
