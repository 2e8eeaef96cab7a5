"""Pair counts under merges, against counting everything anew."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.pairs import PairCounts

WORDS = st.dictionaries(st.lists(st.integers(0, 2), max_size=9).map(tuple), st.integers(0, 5), max_size=6)
MERGES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), max_size=8)


def replaced(word, left, right, new):
    """Left to right, without overlap."""
    out, rest = [], list(word)
    while rest:
        if rest[:2] == [left, right]:
            out.append(new)
            rest = rest[2:]
        else:
            out.append(rest.pop(0))
    return tuple(out)


def counted(words):
    counts = Counter()
    for word, weight in words:
        for pair in pairwise(word):
            counts[pair] += weight
    return {pair: count for pair, count in counts.items() if count}


@given(WORDS, MERGES, st.booleans())
def test_counts_are_those_of_counting_anew(words, merges, reuse):
    """Also where merges give an id that is there already, as merging batches of spelled tokens does."""
    pairs = PairCounts(words)
    plain = [(word, weight) for word, weight in words.items() if word and weight]
    assert pairs.counts == counted(plain)
    for step, (left, right, other) in enumerate(merges):
        before = dict(pairs.counts)
        new = other if reuse else 3 + step
        if new in (left, right):
            continue
        changed = pairs.merge(left, right, new)
        plain = [(replaced(word, left, right, new), weight) for word, weight in plain]
        assert pairs.counts == counted(plain)
        assert pairs.words() == [word for word, _ in plain]
        every = before.keys() | pairs.counts.keys()
        assert changed == {p: pairs.counts.get(p, 0) for p in every if pairs.counts.get(p, 0) != before.get(p, 0)}


def test_overlaps():
    pairs = PairCounts({(7,) * 5: 2})
    assert pairs.counts == {(7, 7): 8}
    assert pairs.merge(7, 7, 8) == {(7, 7): 0, (8, 8): 2, (8, 7): 2}
    assert pairs.words() == [(8, 8, 7)]
    assert pairs.merge(1, 2, 9) == {}  # a pair that is not there changes nothing


def test_places_are_taken_in_order():
    """An id that two merges make, the one on the right first: XXX of X = ad, ad, bc."""
    pairs = PairCounts({(0, 3, 0, 3, 1, 2): 1})
    assert pairs.merge(1, 2, 9) and pairs.merge(0, 3, 9)
    assert pairs.counts == {(9, 9): 2}
    pairs.merge(9, 9, 10)
    assert pairs.words() == [(10, 9)]


def test_nothing_at_all():
    assert PairCounts({}).counts == {} and PairCounts({}).words() == []
    assert PairCounts({(): 3, (1,): 2, (1, 2): 0}).counts == {}


def test_a_negative_weight():
    with pytest.raises(ConfigError, match=r"weight of the word \(1, 2\) is -1"):
        PairCounts({(1, 2): -1})
