"""BPE-dropout: samples against the exact distribution, and that against other ways to compute it."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize import bpe_dropout
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.merges import bytes_of, ranks_of

RULES = bpe_dropout.RULES
# banana: an, na, ana (overlapping its own place), nan, ba, bana
MERGES = ((97, 110), (110, 97), (256, 97), (257, 110), (98, 97), (260, 257), (97, 97))
SPELLED = bytes_of(MERGES)


def by_every_drop(word, p, rule):
    """All 2^n ways to drop the n places of a step, one after another."""
    ranks = ranks_of(MERGES)
    places = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(word)) if pair in ranks]
    total = {}
    for drops in itertools.product((True, False), repeat=len(places)):
        weight = Fraction(1)
        for dropped in drops:
            weight *= p if dropped else 1 - p
        kept = [place for place, dropped in zip(places, drops, strict=True) if not dropped]
        if not kept:
            ends = {word: Fraction(1)}
        else:
            best = min(kept)[0]
            chosen = [i for rank, i in kept if rank == best]
            if rule == "single":
                chosen = chosen[:1]
            out, i = [], 0
            while i < len(word):
                out.append(256 + best if i in chosen else word[i])
                i += 2 if i in chosen else 1
            ends = by_every_drop(tuple(out), p, rule)
        for end, share in ends.items():
            total[end] = total.get(end, 0) + weight * share
    return {end: share for end, share in total.items() if share}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("p", [Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(1)], ids=str)
@pytest.mark.parametrize("word", [b"banana", b"aaaa", b"ana", b"x", b""], ids=bytes.decode)
def test_the_distribution_is_exact(word, p, rule):
    exact = bpe_dropout.distribution(MERGES, word, p, rule)
    assert exact == by_every_drop(tuple(word), p, rule)
    assert sum(exact.values()) == 1 and all(b"".join(SPELLED[i] for i in end) == word for end in exact)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("p", [0.1, 0.6])
def test_samples_follow_the_distribution(rule, p):
    """Chi-square at the 0.1 % level, with rare encodings as one; the seed is fixed."""
    rng, ranks, number = np.random.default_rng(5), ranks_of(MERGES), 4000
    word = b"bananaan"
    exact = bpe_dropout.distribution(MERGES, word, p, rule)
    drawn = [tuple(bpe_dropout.sample(word, ranks, p, rng, rule)) for _ in range(number)]
    assert set(drawn) <= set(exact)
    common = [end for end, share in exact.items() if share * number >= 5]
    expected = np.array([exact[end] * number for end in common])
    found = np.array([drawn.count(end) for end in common])
    if len(common) < len(exact):
        expected, found = np.append(expected, number - expected.sum()), np.append(found, number - found.sum())
    assert len(common) > 3 and stats.chisquare(found, expected).pvalue > 1e-3


def test_the_rules_are_two():
    exact = [bpe_dropout.distribution(MERGES, b"nana", 0.3, rule) for rule in RULES]
    assert exact[0] != exact[1]


@given(st.text(st.sampled_from("ban 12é"), max_size=30), st.sampled_from(RULES), st.integers(0, 9))
def test_texts(text, rule, seed):
    tokenizer = BpeTokenizer(MERGES, ("space",))
    draw = lambda p: bpe_dropout.encode(tokenizer, text, p, np.random.default_rng(seed), rule).tolist()
    assert draw(0.0) == tokenizer.encode(text).tolist()
    assert draw(1.0) == list(text.encode())
    assert draw(0.4) == draw(0.4) and tokenizer.decode(draw(0.4)) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: bpe_dropout.encode(t, "a", 1.5, np.random.default_rng(0)), "between 0 and 1, not 1.5"),
        (lambda t: bpe_dropout.encode(t, "a", 0.1, 7), "expected a numpy.random.Generator, got 7"),
        (
            lambda t: bpe_dropout.encode(t, "a", 0.1, np.random.default_rng(0), "all"),
            "unknown rule of BPE-dropout 'all'",
        ),
        (lambda t: bpe_dropout.distribution(MERGES, b"a", -0.1), "between 0 and 1, not -0.1"),
        (lambda t: bpe_dropout.distribution(MERGES, b"a", 0.1, "singel"), "did you mean 'single'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call(BpeTokenizer(MERGES))
    assert "\n" not in str(error.value)
