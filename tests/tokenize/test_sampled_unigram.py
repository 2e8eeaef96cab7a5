"""Unigram tokenizers drawn at random: without noise the definition, with noise other vocabularies."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.sampled_unigram import NEVER, sample_size, sample_unigram

TEXTS = ["the thin thing there, naïve", "the other thing"] * 3


def test_without_noise_it_is_the_largest_scores():
    counts = collections.Counter()
    for text in TEXTS:
        first, *rest = text.split(" ")
        for word in (first, *(" " + w for w in rest)):
            for i in range(len(word)):
                for j in range(i + 1, min(len(word), i + 4) + 1):
                    counts[word[i:j]] += len(word[i:j].encode())
    total = sum(counts.values())
    several = {piece: score for piece, score in counts.items() if len(piece.encode()) > 1}
    ours = sample_unigram(TEXTS, 259 + 20, np.random.default_rng(0), noise=0.0, max_length=4)
    assert len(ours.pieces) == 20 and ours.vocab_size == 279
    scores = sorted(several.values(), reverse=True)[:20]
    np.testing.assert_allclose(ours.scores[256:], np.log(np.array(scores) / total))
    assert all(several[piece] == score for piece, score in zip(ours.pieces, scores, strict=True))
    np.testing.assert_allclose(ours.scores[:256], np.log(min(counts.values()) / total))
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
    assert len(ours.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 1.5


def test_noise():
    draws = [sample_unigram(TEXTS, 290, np.random.default_rng(seed)) for seed in range(12)]
    assert draws[0] == sample_unigram(TEXTS, 290, np.random.default_rng(0))
    sets = {frozenset(one.pieces) for one in draws}
    assert 2 <= len(sets)
    wild = sample_unigram(TEXTS, 5000, np.random.default_rng(0), noise=10.0, spread=0.0)
    assert NEVER in wild.scores and wild.vocab_size < 5000  # every substring there is
    for one in (*draws[:3], wild):
        assert all(np.isfinite(one.scores)) and one.decode(one.encode(TEXTS[0])) == TEXTS[0]
        assert one.decode_bytes(one.encode(b"\xff\x00 the")) == b"\xff\x00 the"


def test_sizes():
    rng = np.random.default_rng(0)
    drawn = np.array([sample_size(rng, 512, 4096) for _ in range(4000)])
    assert drawn.min() >= 512 and drawn.max() <= 4096
    share = [((drawn >= low) & (drawn < 2 * low)).mean() for low in (512, 1024, 2048)]
    np.testing.assert_allclose(share, 1 / 3, atol=0.03)  # as many in each doubling
    assert sample_size(rng, 7, 7) == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_unigram(TEXTS, 100, np.random.default_rng(0)), "must be at least 260"),
        (lambda: sample_unigram(["a"], 300, np.random.default_rng(0)), "no substring of two bytes"),
        (lambda: sample_unigram(TEXTS, 300, np.random.default_rng(0), noise=-1.0), "should not be negative"),
        (lambda: sample_unigram(TEXTS, 300, np.random.default_rng(0), max_length=1), "max_length should be 2"),
        (lambda: sample_size(np.random.default_rng(0), 5, 4), "expected 1 <= least <= most, got 5 and 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
