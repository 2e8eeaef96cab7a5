"""Numbers of tokenizers: closed forms, laws of entropies, classes of tokens, bad input. Golden values are elsewhere."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize import metrics
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer

BYTE = ByteTokenizer(specials=())
COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(lambda counts: sum(counts) > 0)
THE = ((ord("t"), ord("h")), (256, ord("e")), (ord(" "), 257))  # " the" is 258


def test_usage_of_bytes_is_counted_by_hand():
    used = metrics.usage(BYTE, ["a bä\n", b"\xff c"])
    assert used[1:] == (4, 8, 9) and used.tokens == 9 and used.counts[ord(" ")] == 2
    assert (used.fertility, used.bytes_per_token, used.chars_per_token) == (9 / 4, 1.0, 8 / 9)
    assert used.observed == 8 and len(used.unused) == 256 - 8 and ord("z") in used.unused


@given(COUNTS)
def test_entropy_falls_with_its_order(counts):
    orders = [0, 0.5, 1 - 1e-9, 1, 1 + 1e-9, 2, 2.5, 3, 50, 400, math.inf]
    bits = [metrics.renyi_entropy(counts, order) for order in orders]
    assert all(a >= b - 1e-6 for a, b in zip(bits, bits[1:], strict=False))
    assert bits[0] == pytest.approx(math.log2(np.count_nonzero(counts)))
    assert bits[2] == pytest.approx(bits[3], abs=1e-6) and bits[4] == pytest.approx(bits[3], abs=1e-6)
    assert bits[-1] == pytest.approx(-math.log2(max(counts) / sum(counts)))


def test_entropy_of_equal_shares_is_the_log_of_their_number():
    for order in (0, 1, 2.5, 7, math.inf):
        assert metrics.renyi_entropy([3] * 8 + [0], order) == pytest.approx(3)
        assert metrics.efficiency([3] * 8 + [0], order) == pytest.approx(1)
        assert metrics.efficiency([3] * 8 + [0], order, 64) == pytest.approx(0.5)
    assert metrics.shannon_entropy([1, 1, 2]) == pytest.approx(1.5)
    assert metrics.renyi_entropy([1, 1, 2], 2) == pytest.approx(-math.log2(3 / 8))


def test_percentile_mass_sums_the_middle_ranks():
    counts = np.arange(1, 101)  # ranked 100, 99, ...: ranks 3..82 are counts 97..18
    assert metrics.percentile_mass(counts) == pytest.approx(sum(range(18, 98)) / 5050)
    assert metrics.percentile_mass(np.random.default_rng(0).permutation(counts)) == metrics.percentile_mass(counts)
    assert metrics.percentile_mass([3, 1], 0, 0.1) == 0.75  # empty otherwise: one rank is taken
    assert metrics.percentile_mass([3, 1], 0.9, 0.9) == 0.75


def test_word_rates_count_occurrences():
    rates = metrics.word_rates(BpeTokenizer(THE, specials=()), ["the cat", "the\nthe x"])
    assert rates == (3 / 5, 2 / 5)
    assert metrics.word_rates(BYTE, ["a bc"], prefix="") == (0.5, 0.5)


def test_parity_of_bytes_is_the_ratio_of_bytes():
    parallel = {"en": ["cat", "one dog"], "ru": ["кот", "один пёс"]}
    assert metrics.parity(BYTE, parallel, "en") == {"en": 1.0, "ru": (6 + 15) / 10}


def test_coverage_asks_whether_a_character_is_one_token():
    latin = ((0xC3, 0xA4),)  # ä
    covered = metrics.character_coverage(BpeTokenizer(latin), ["aäö äa"])
    assert covered == (2 / 3, 4 / 5)
    assert metrics.character_coverage(BYTE, ["ascii"]) == (1, 1)


@pytest.mark.parametrize(
    ("piece", "name"),
    [
        (b"", "special"),
        (b"\xc3", "invalid_utf8"),
        (b" \n", "whitespace"),
        (b"\x1c", "whitespace"),  # a separator: Cc, and white space to Python
        (b"a\x00", "control"),
        (" naïve ".encode(), "alphabetic"),
        ("e\u0301".encode(), "alphabetic"),
        (" 12²Ⅳ".encode(), "numeric"),
        (b" ($=", "punctuation"),
        (b"a1", "mixed"),
        (b"a\n", "mixed"),  # only spaces are passed over
        ("\ue000".encode(), "mixed"),  # private use
    ],
)
def test_classes(piece, name):
    assert metrics.class_of(piece) == name and name in metrics.CLASSES


def test_vocabularies():
    pieces = [b"", b" the", b"the", b"a", "字".encode(), "aя".encode(), "\u0301".encode(), b" x", b"\xff"]
    assert metrics.classes(pieces) == {"special": 1, "invalid_utf8": 1, "alphabetic": 7}
    assert metrics.scripts(pieces) == {"LATIN": 4, "CJK": 1, "CYRILLIC+LATIN": 1, "MARKS": 1}
    assert metrics.lengths(pieces) == {1: 2, 2: 2, 3: 3, 4: 1}
    assert metrics.completeness(pieces) == (2, 5, 1) and metrics.starts_with_space(pieces) == 2
    assert metrics.core_tokens([pieces, BYTE.token_bytes, [b"a", b"", b"\xff"]]) == {b"a", b"\xff"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.renyi_entropy([1], -1), "order: expected 0 or more, got -1"),
        (lambda: metrics.renyi_entropy([0, 0], 2), "there is no token"),
        (lambda: metrics.renyi_entropy([1, -1], 2), "none negative"),
        (lambda: metrics.efficiency([5, 0]), "at least 2 ids, got 1"),
        (lambda: metrics.efficiency([1, 1, 1], 2, 2), "at least 3 ids, got 2"),
        (lambda: metrics.percentile_mass([1], 0.8, 0.2), "start <= stop"),
        (lambda: metrics.usage(BYTE, [" "]).fertility, "no words"),
        (lambda: metrics.usage(BYTE, []).bytes_per_token, "no tokens"),
        (lambda: metrics.word_rates(BYTE, ["  "]), "no words"),
        (lambda: metrics.parity(BYTE, {"de": ["a"]}, "en"), "reference 'en'; there are de"),
        (lambda: metrics.parity(BYTE, {"de": ["a"], "en": []}, "en"), "1 texts of 'de', 0 of 'en'"),
        (lambda: metrics.character_coverage(BYTE, []), "no characters"),
        (lambda: metrics.core_tokens([]), "at least one vocabulary"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
