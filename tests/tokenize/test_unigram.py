"""The unigram model against sums over every segmentation, and against the library tokenizers."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.substrings import Substrings
from jaxlm.tokenize.unigram import UNKNOWN, UnigramTokenizer, expected_counts, losses

TEXTS = [
    "the cat and the other cat sat on that mat, then the hat",
    "naïve théâtre, that theatre 日本",
    "banana bandana",
] * 2


def segmentations(text, pieces):
    """All ways to cut ``text`` into ``pieces``."""
    if not text:
        return [()]
    return [
        (text[:n], *rest)
        for n in range(1, len(text) + 1)
        if text[:n] in pieces
        for rest in segmentations(text[n:], pieces)
    ]


def probabilities(text, scores, alpha=1.0):
    return {way: math.exp(alpha * sum(scores[piece] for piece in way)) for way in segmentations(text, scores)}


scored = st.dictionaries(st.text("ab", min_size=1, max_size=4), st.floats(-9, -0.1), max_size=9).map(
    lambda scores: {"a": -2.0, "b": -2.5} | scores
)


@given(
    st.dictionaries(st.text("ab", min_size=1, max_size=7), st.integers(1, 3), min_size=1, max_size=4),
    st.integers(1, 4),
    st.data(),
)
def test_expected_counts(words, most, data):
    lattice = Substrings(words, most, least=1)
    scores = {p: data.draw(st.floats(-9, -0.1)) for p in lattice.pieces if len(p) == 1 or data.draw(st.booleans())}
    counts, log_likelihood = expected_counts(lattice, np.array([scores.get(p, -np.inf) for p in lattice.pieces]))
    expected, total = collections.Counter(), 0.0
    for word, weight in words.items():
        ways = probabilities(word, scores)
        total += weight * math.log(sum(ways.values()))
        for way, probability in ways.items():
            for piece in way:
                expected[piece] += weight * probability / sum(ways.values())
    np.testing.assert_allclose(counts, [expected[piece] for piece in lattice.pieces], rtol=1e-11, atol=1e-14)
    assert math.isclose(log_likelihood, total, rel_tol=1e-12)


def test_long_words_do_not_underflow():
    lattice = Substrings({"ab" * 100: 1}, 1)
    counts, log_likelihood = expected_counts(lattice, np.array([-20.0, -30.0]))
    assert counts.tolist() == [100.0, 100.0] and log_likelihood == -5000.0


def test_steps_raise_the_likelihood():
    lattice = Substrings({word: 1 for text in TEXTS for word in text.split()}, 6)
    scores = np.log(lattice.counts / lattice.counts.sum())
    found = []
    for _ in range(20):
        counts, log_likelihood = expected_counts(lattice, scores)
        found.append(log_likelihood)
        with np.errstate(divide="ignore"):
            scores = np.log(counts / counts.sum())
    assert all(b > a - 1e-9 for a, b in itertools.pairwise(found)) and found[-1] > found[0] + 1


def test_losses():
    """By the formula, from the best of all segmentations that are not the piece itself."""
    lattice = Substrings({"abab": 3, "bab": 2, "aab": 1}, 4, least=1)
    counts, _ = expected_counts(lattice, np.log(lattice.counts / lattice.counts.sum()))
    counts = np.maximum(counts, 0.5)
    active = np.ones(len(counts), bool)
    active[lattice.pieces.index("bab")] = False
    total = counts[active].sum()
    of = {piece: count for piece, count, alive in zip(lattice.pieces, counts, active, strict=True) if alive}
    scores = {piece: math.log(count / total) for piece, count in of.items()}
    found = losses(lattice, counts, active)
    assert found[~active].tolist() == [0.0] and (lattice.lengths > 1).sum() > 4
    for piece, loss in zip(lattice.pieces, found, strict=True):
        if len(piece) == 1 or piece not in of:
            assert loss == 0
            continue
        ways = [way for way in segmentations(piece, scores) if len(way) > 1]
        best = max(ways, key=lambda way: sum(scores[part] for part in way))
        grown = total + of[piece] * (len(best) - 1)
        expected = of[piece] * (scores[piece] - sum(math.log((of[p] + of[piece]) / grown) for p in best))
        assert math.isclose(loss, expected, rel_tol=1e-10)


@given(scored, st.text("ab", max_size=8))
def test_the_best_segmentation(scores, text):
    tokenizer = UnigramTokenizer.from_scores(scores, split=())
    found = tuple(tokenizer.token_bytes[i].decode() for i in tokenizer.encode(text))
    ways = probabilities(text, scores)
    assert math.isclose(ways[found], max(ways.values()), rel_tol=1e-9)
    assert math.isclose(tokenizer.log_probability(text), math.log(sum(ways.values())), rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_sampling_is_exact(alpha):
    scores = {"a": -2.0, "b": -2.5, "ab": -1.0, "ba": -3.0, "aba": -2.0, "bab": -1.5}
    tokenizer = UnigramTokenizer.from_scores(scores, split=("space",))
    ways = probabilities("ababa", scores, alpha)
    rng, draws = np.random.default_rng(1), 4000
    found = collections.Counter(
        tuple(tokenizer.token_bytes[i].decode() for i in tokenizer.sample("ababa", rng, alpha)) for _ in range(draws)
    )
    assert len(ways) > 8 and set(found) <= set(ways)
    for way, weight in ways.items():
        share = weight / sum(ways.values())
        assert abs(found[way] - draws * share) < 4 * math.sqrt(draws * share * (1 - share)) + 1
    text = TEXTS[1] + "\udcff"
    trained = UnigramTokenizer.train(TEXTS, 300)
    assert trained.decode(trained.sample(text, rng, alpha)) == text
    assert trained.sample(text, rng, 1e4).tolist() == trained.encode(text).tolist()


def library(tokenizers, tokenizer):
    """The same model in the library: its pieces, then the bytes that it falls back to."""
    singles = [(chr(b), tokenizer.scores[b]) for b in range(128) if tokenizer.scores[b] > min(tokenizer.scores)]
    pieces = singles + list(zip(tokenizer.pieces, tokenizer.scores[256:], strict=True))
    unknown = min(score for _, score in pieces)
    vocabulary = [("<unk>", 0.0), *pieces, *((f"<0x{b:02X}>", unknown) for b in range(256))]
    return tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=0, byte_fallback=True))


TRAINED = UnigramTokenizer.train(TEXTS, 320, split=(), coverage=0.97)


@given(
    st.lists(
        st.sampled_from([*" ".join(TEXTS).split(" "), *"abént日🦊ž "]),
    ).map("".join)
)
@settings(max_examples=300)
def test_the_library_cuts_the_same(text):
    tokenizers = pytest.importorskip("tokenizers")
    tokens = library(tokenizers, TRAINED).encode(text).tokens
    theirs = [bytes.fromhex(t[3:5]) if len(t) == 6 and t.startswith("<0x") else t.encode() for t in tokens]
    ours = [TRAINED.token_bytes[i] for i in TRAINED.encode(text)]
    if theirs != ours:  # a tie, by the library's scores
        score = {TRAINED.token_bytes[i]: s for i, s in enumerate(TRAINED.scores)}
        assert math.isclose(sum(map(score.get, theirs)), sum(map(score.get, ours)), rel_tol=1e-12)


def test_characters_in_bytes_cost_the_same_however_long():
    tokenizer = UnigramTokenizer.from_scores({"a": -1.0, "aé": -30.0, "b日": -12.5, "b": -2.0}, split=())
    unknown = -30.0 + UNKNOWN
    assert tokenizer.log_probability("ž") == unknown == tokenizer.log_probability("🦊")
    assert len(tokenizer.encode("aé")) == 1 and len(tokenizer.encode("b日")) == 1 and len(tokenizer.encode("日")) == 3


def test_training():
    for size in (280, 300, 330):
        tokenizer = UnigramTokenizer.train(TEXTS, size, keep=0.9)
        assert tokenizer.vocab_size == size and all(len(piece) <= 16 for piece in tokenizer.pieces)
        assert set("ïé日本") <= set(tokenizer.pieces)
    rare = UnigramTokenizer.train(TEXTS, 300, coverage=0.95)
    assert not set("日本") & set("".join(rare.pieces)) and rare.vocab_size == 300
    assert len(UnigramTokenizer.train(TEXTS, 330).encode(TEXTS[0])) < len(TEXTS[0]) / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UnigramTokenizer.train(TEXTS, 5000), "vocab_size can be at most"),
        (lambda: UnigramTokenizer.train(TEXTS, 262), "room for 3 pieces|has 3 pieces"),
        (lambda: UnigramTokenizer.train(TEXTS), "needs a vocab_size"),
        (lambda: UnigramTokenizer.train(TEXTS, 300, coverage=1.5), "coverage must be above 0"),
        (lambda: UnigramTokenizer.train(TEXTS, 300, keep=0.0), "keep must be between 0 and 1"),
        (lambda: UnigramTokenizer.train(TEXTS, 300, steps=0), "steps must be positive"),
        (lambda: UnigramTokenizer(("ab",)), "UnigramTokenizer.scores: expected 257 .* got 256"),
        (lambda: UnigramTokenizer(scores=(math.nan,) * 256), "scores\\[0\\] is nan"),
        (lambda: UnigramTokenizer.from_scores({}), "at least one piece"),
        (lambda: TRAINED.sample("a", np.random.default_rng(0), -1.0), "alpha must be a number of 0 or more"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
