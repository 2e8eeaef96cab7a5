"""The switching source: its closed forms against the chain itself, its samples against its probabilities."""

import itertools
import math

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.data.switching_source import SwitchingSource, unigram_bits_per_char


@pytest.mark.parametrize(("k", "p", "q"), [(1, 0.9, 0.9), (2, 0.8, 0.3), (3, 0.05, 1.0), (2, 0.0, 0.4)])
def test_closed_forms(k, p, q):
    """The entropy of n symbols less that of n - 1, over every text, begun in the stationary distribution."""
    source = SwitchingSource(k, p, q)
    matrix = np.array([[1 - p, p], [q, 1 - q]])
    stationary = np.array([1 - source.stationary, source.stationary])
    np.testing.assert_allclose(stationary @ matrix, stationary, atol=1e-15)

    def entropy(n):
        total = 0.0
        for text in itertools.product((0, 1), repeat=n):
            probability = math.prod(stationary[s] if i < k else matrix[text[i - k], s] for i, s in enumerate(text))
            total -= probability * math.log2(probability) if probability else 0
        return total

    assert math.isclose(source.entropy_rate, entropy(2 * k + 1) - entropy(2 * k), abs_tol=1e-12)
    assert math.isclose(source.unigram_floor, entropy(1), abs_tol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_samples(k):
    source = SwitchingSource(k, 0.8, 0.3)
    symbols = source.sample(60_000, np.random.default_rng(0))
    assert symbols.dtype == np.uint8 and symbols.shape == (60_000,) and set(symbols.tolist()) == {0, 1}
    before, changed = symbols[:-k], symbols[k:] != symbols[:-k]
    near = lambda found, p, n: abs(found - p) < 4 * math.sqrt(p * (1 - p) / n)
    for value, p in ((0, 0.8), (1, 0.3)):
        assert near(changed[before == value].mean(), p, (before == value).sum())
    assert abs(symbols.mean() - source.stationary) < 0.02
    starts = np.array([source.sample(1, np.random.default_rng(seed))[0] for seed in range(2000)])
    assert near(starts.mean(), source.stationary, 2000)
    for n in range(8):
        text = source.text(n, np.random.default_rng(1))
        assert len(text) == n and set(text) <= set("ab")
        assert [ord(c) - ord("a") for c in text] == source.sample(n, np.random.default_rng(1)).tolist()


def test_unigram_bits():
    assert unigram_bits_per_char([0, 1, 0, 1], 4) == 1.0
    assert unigram_bits_per_char(np.array([7, 7, 9, 9]), 16) == 0.25
    assert unigram_bits_per_char([3, 3], 2) == 0.0 and unigram_bits_per_char([], 1) == 0.0
    symbols = SwitchingSource(2, 0.9, 0.9).sample(50_000, np.random.default_rng(0))
    assert abs(unigram_bits_per_char(symbols, len(symbols)) - 1.0) < 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SwitchingSource(0), "SwitchingSource.k must be positive"),
        (lambda: SwitchingSource(1, 1.5), "SwitchingSource.p must be a probability, got 1.5"),
        (lambda: SwitchingSource(1, 0.5, -0.1), "SwitchingSource.q"),
        (lambda: SwitchingSource(1, 0.0, 0.0), "nothing ever changes"),
        (lambda: SwitchingSource().sample(-1, np.random.default_rng(0)), "must not be negative"),
        (lambda: unigram_bits_per_char([0.5], 1), "integer dtype"),
        (lambda: unigram_bits_per_char([1], 0), "characters must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
