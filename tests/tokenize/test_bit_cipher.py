"""Bit ciphers: patterns by enumeration, codes by rank, vectors against a plain double loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.bit_cipher import NORMS, ORDERS, BitCipher, patterns, table

SMALL = BitCipher(bits=5, window=2)


def written(rows) -> list[str]:
    return ["".join(map(str, row)) for row in np.asarray(rows, int)]


def test_patterns_by_hand():
    assert written(patterns(4, 10)) == (
        ["1000", "0100", "0010", "0001"] + ["1100", "1010", "1001", "0110", "0101", "0011"]
    )
    assert written(patterns(4, 10, "colexicographic")) == (
        ["1000", "0100", "0010", "0001"] + ["1100", "1010", "0110", "1001", "0101", "0011"]
    )
    assert written(patterns(3, 7)) == ["100", "010", "001", "110", "101", "011", "111"]
    assert patterns(9, 0).shape == (0, 9)


@given(st.integers(1, 9), st.sampled_from(ORDERS), st.integers(0, 5), st.integers(0, 10))
def test_patterns_are_different_and_grow(bits, order, seed, tenths):
    """All 2^b - 1 of them, by the number of bits; fewer are the first of more."""
    whole = patterns(bits, 2**bits - 1, order, seed)
    assert len(set(written(whole))) == len(whole)
    ones = whole.sum(1)
    assert ones.tolist() == sorted(ones.tolist())
    assert np.bincount(ones).tolist() == [0, *(math.comb(bits, k) for k in range(1, bits + 1))]
    number = tenths * len(whole) // 10
    np.testing.assert_array_equal(patterns(bits, number, order, seed), whole[:number])


def test_more_bits_add_colexicographic_patterns_behind():
    pairs = patterns(6, 6 + 15, "colexicographic")[6:]
    np.testing.assert_array_equal(pairs[:6, :4], patterns(4, 10, "colexicographic")[4:])


def test_shuffles():
    """A wide code's patterns are drawn rather than listed; seeds differ, a seed is the same again."""
    one, two, again = (patterns(300, 50_000, "shuffled", seed) for seed in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any() and len(np.unique(np.packbits(one, 1), axis=0)) == 50_000
    assert (one[:300].sum(1) == 1).all() and (one[300:45_150].sum(1) == 2).all() and (one[45_150:].sum(1) == 3).all()


def test_codes_go_by_rank():
    counts = [3, 9, 3, 0, 20, 1, 5]  # ranks: 4, 1, 6, 0, 2, 5, 3
    codes = BitCipher(bits=3, norm="none").codes(counts)
    assert written(codes[[4, 1, 6, 0, 2, 5, 3]]) == ["100", "010", "001", "110", "101", "011", "111"]
    for norm, order in zip(NORMS[:2], (2, 1), strict=True):
        scaled = BitCipher(bits=3, norm=norm).codes(counts)
        np.testing.assert_allclose(np.linalg.norm(scaled, ord=order, axis=1), 1)
        np.testing.assert_array_equal(scaled > 0, codes > 0)
    near = BitCipher(bits=3).codes(counts) @ BitCipher(bits=3).codes(counts).T
    np.testing.assert_allclose(near[np.ix_([4, 1, 6], [4, 1, 6])], np.eye(3))


def by_hand(how: BitCipher, documents, size):
    counts = np.bincount(np.concatenate(documents), minlength=size)
    codes, out = how.codes(counts), np.zeros((size, 2 * how.window, how.bits))
    offsets = [o for o in range(-how.window, how.window + 1) if o]
    for ids in documents:
        for i, token in enumerate(ids):
            for place, offset in enumerate(offsets):
                if 0 <= i + offset < len(ids):
                    out[token, place] += codes[ids[i + offset]]
    return out.reshape(size, -1) if how.join == "concat" else out.sum(1)


@given(st.lists(st.lists(st.integers(0, 8), max_size=12), min_size=1, max_size=4), st.sampled_from(("sum", "concat")))
def test_vectors_by_hand(documents, join):
    how = BitCipher(bits=4, window=3, join=join, order="colexicographic")
    documents = [np.array(ids, int) for ids in documents]
    found = how.vectors(documents, 9)
    assert found.shape == (9, how.width)
    np.testing.assert_allclose(found, by_hand(how, documents, 9), rtol=1e-12, atol=1e-12)


def test_many_pairs(monkeypatch):
    """Pieces of pairs that cut a token's neighbours apart."""
    monkeypatch.setattr("jaxlm.tokenize.bit_cipher.PAIRS", 7)
    documents = [np.random.default_rng(0).integers(0, 20, 60)]
    np.testing.assert_allclose(SMALL.vectors(documents, 25), by_hand(SMALL, documents, 25), rtol=1e-12)


def test_tables():
    vectors = SMALL.vectors([np.random.default_rng(1).integers(0, 20, 200)], 31)
    made = table(vectors)
    assert made.dtype == np.float32 and made.shape == (31, 5)
    np.testing.assert_allclose(made[:20].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose((made[:20] ** 2).mean(), 1 / 5, rtol=1e-5)
    np.testing.assert_allclose(table(3 * vectors), made, rtol=1e-5)  # counts of a text read three times
    assert np.abs(made[20:]).min() > 0 and (made[20:] != table(vectors, seed=1)[20:]).all()
    assert np.isfinite(table(np.zeros((3, 4)))).all() and np.isfinite(table(np.ones((3, 4)))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patterns(3, 8), "3 bits make 7 patterns, fewer than 8 tokens"),
        (lambda: patterns(0, 1), "expected bits > 0"),
        (lambda: patterns(3, 2, "lexicografic"), "did you mean 'lexicographic'"),
        (lambda: BitCipher(bits=0), "BitCipher.bits: expected a positive integer, got 0"),
        (lambda: BitCipher(window=0), "BitCipher.window: expected a positive integer, got 0"),
        (lambda: BitCipher(norm="l3"), "BitCipher.norm"),
        (lambda: BitCipher(join="add"), "BitCipher.join"),
        (lambda: SMALL.vectors([[1, 2]], 40), "5 bits make 31 patterns, fewer than 40 tokens"),
        (lambda: SMALL.vectors([[1, 9]], 9), r"token \[9\] is not one of 0..8"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
