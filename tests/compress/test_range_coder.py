"""The fast coder: round trips, code lengths near the ideal, carries, quantised probabilities, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.compress import rational
from jaxlm.compress.range_coder import LARGEST_TOTAL, RangeDecoder, RangeEncoder, decode, encode, quantise
from jaxlm.core.errors import ConfigError


def information(texts, frequencies):
    f = np.asarray(frequencies)
    return [-np.log2(f[np.asarray(text, int)] / f.sum()).sum() for text in texts]


@st.composite
def batches(draw):
    """(frequencies, texts), the frequencies of any shape and total, the texts of unequal lengths."""
    frequencies = draw(st.lists(st.one_of(st.integers(1, 9), st.integers(1, 30_000)), min_size=1, max_size=8))
    symbol = st.integers(0, len(frequencies) - 1)
    return frequencies, draw(st.lists(st.lists(symbol, max_size=60), max_size=6))


@given(batches())
def test_round_trip_near_the_ideal(batch):
    frequencies, texts = batch
    codes = encode(texts, frequencies, sum(frequencies))
    found = decode(codes, [len(text) for text in texts], frequencies, sum(frequencies))
    assert [row.tolist() for row in found] == texts
    assert all(row.dtype == np.int32 for row in found)
    for code, ideal in zip(codes, information(texts, frequencies), strict=True):
        assert 8 * len(code) <= 1.001 * ideal + 8 + 1e-9


@given(batches())
def test_a_lane_knows_nothing_of_the_others(batch):
    frequencies, texts = batch
    assert encode(texts, frequencies, sum(frequencies)) == [
        encode([text], frequencies, sum(frequencies))[0] for text in texts
    ]


def test_a_code_is_a_number_in_the_exact_interval():
    """With a total of 2^k and few symbols no width is rounded, and the code lies in the text's exact interval."""
    frequencies, rng = [1, 5, 2], np.random.default_rng(0)
    model = rational.StaticModel(tuple(frequencies))
    for _ in range(50):
        text = rng.integers(0, 3, int(rng.integers(0, 15))).tolist()
        (code,) = encode([text], frequencies, 8)
        value, bits = int.from_bytes(code, "big"), 8 * len(code)
        exact = rational.encode(model, text)
        if text:
            assert rational.decode(model, rational.Code(bits + 64, value << 64), len(text)) == text
        assert bits <= exact.bits + 8


@pytest.mark.parametrize(("total", "rare"), [(1 << 16, 1), (LARGEST_TOTAL, 1), (1009, 3)])
def test_a_surely_guessed_text_costs_its_information(total, rare):
    """The hardest for a coder that rounds: every symbol has next to no information."""
    n, frequencies = 20_000, [rare, total - rare]
    texts = [np.ones(n, int), np.random.default_rng(1).random(n) > rare / total]
    codes = encode(texts := [text.astype(int) for text in texts], frequencies, total)
    assert all((a == b).all() for a, b in zip(decode(codes, [n, n], frequencies, total), texts, strict=True))
    for code, ideal in zip(codes, information(texts, frequencies), strict=True):
        assert 8 * len(code) <= 1.001 * ideal + 8


def test_uniform_symbols_of_the_largest_total():
    texts = np.random.default_rng(2).integers(0, LARGEST_TOTAL, (3, 500))
    frequencies = np.ones(LARGEST_TOTAL, int)
    codes = encode(list(texts), frequencies, LARGEST_TOTAL)
    assert (np.stack(decode(codes, [500] * 3, frequencies, LARGEST_TOTAL)) == texts).all()
    assert max(map(len, codes)) <= 1.001 * 500 * 18 / 8 + 1


@pytest.mark.parametrize("last", [[0], [1], [2], []])
def test_a_carry_runs_through_the_whole_code(last):
    """The interval straddles 1/2 until the last symbol says on which side of it the text is."""
    text = [1] * 3000 + last
    (code,) = encode([text], [1, 2, 1], 4)
    assert decode([code], [len(text)], [1, 2, 1], 4)[0].tolist() == text
    assert 8 * len(code) <= 3000 + 2 * len(last) + 8.01
    assert code.startswith(b"\x80" if last in ([2], [1], []) else b"\x7f\xff")


def test_empty_texts_and_one_symbol():
    assert encode([], [1, 1], 2) == [] == decode([], [], [1, 1], 2)
    assert encode([[], b""], [1, 1], 2) == [b"", b""]
    assert decode([b""], [0], [1, 1], 2)[0].tolist() == []
    assert encode([[0] * 5000], [7], 7) == [b""]
    assert decode([b""], [5000], [7], 7)[0].tolist() == [0] * 5000


def conditional(prefixes):
    """Frequencies that expect the symbol before, of total 1000."""
    b, t = prefixes.shape
    p = np.ones((b, 4))
    if t:
        p[np.arange(b), prefixes[:, -1]] += 12
    return quantise(p, 1000)


@given(st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=5))
def test_a_model_of_the_prefix(texts):
    codes = encode(texts, conditional, 1000)
    assert [row.tolist() for row in decode(codes, [len(text) for text in texts], conditional, 1000)] == texts
    for code, text in zip(codes, texts, strict=True):
        ideal = rational.ideal_bits(lambda prefix: conditional(np.array([prefix], int))[0].tolist(), text)
        assert 8 * len(code) <= 1.001 * ideal + 8 + 1e-9


def test_one_step_at_a_time():
    """The two classes, with another total than the default and lanes that end early."""
    encoder = RangeEncoder(2, 10)
    encoder.put([0, 3], [3, 7])
    encoder.put([9], [1])
    decoder = RangeDecoder(encoder.codes(), 10)
    points = decoder.points()
    assert points.dtype == np.int64 and 0 <= points[0] < 3 <= points[1] < 10
    decoder.take([0, 3], [3, 7])
    assert decoder.points()[0] == 9
    assert encoder.codes() == encoder.codes()  # and asking changes nothing


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1), st.floats(0, 1e-300)), min_size=1, max_size=50).filter(any),
    st.integers(50, 70_000),
)
def test_quantise(probabilities, total):
    f = quantise(probabilities, total)
    assert f.dtype == np.int64 and f.sum() == total and f.min() >= 1
    p = np.array(probabilities) / np.sum(probabilities)
    spare = total - len(p)
    assert (np.abs(f - 1 - p * spare) <= 1 + 1e-6).all()
    assert (f >= p * spare - 1e-6).all()  # the bound on the cost


def test_quantise_rows_alike():
    p = np.random.default_rng(3).dirichlet(np.ones(256), (2, 5))
    f = quantise(p)
    assert f.shape == (2, 5, 256) and (f.sum(-1) == 1 << 16).all()
    assert (quantise(p[1, 3]) == f[1, 3]).all() and (quantise(p[:, ::-1])[:, ::-1] == f).all()
    cost = (p * np.log2(p / (f / f.sum(-1, keepdims=True)))).sum(-1)
    assert (cost <= np.log2((1 << 16) / ((1 << 16) - 256))).all()
    assert quantise([0.0, 1.0], 2).tolist() == [1, 1] and quantise([3.0]).tolist() == [1 << 16]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode([[0]], [2, 0], 2), "coder models whose probabilities are zero .* symbol 1 has frequency 0"),
        (lambda: decode([b""], [1], lambda _: [[0, 2]], 2), "coder models whose probabilities are zero"),
        (lambda: RangeEncoder(1, 4).put([0], [0]), "coder models whose probabilities are zero"),
        (lambda: RangeEncoder(1, 4).put([3], [2]), "inside 0..4"),
        (lambda: RangeDecoder([b""], 4).take([0], [0]), "coder models whose probabilities are zero"),
        (lambda: encode([[0]], [1, 2], 4), "must sum to the total 4, got \\[3\\]"),
        (lambda: encode([[0]], [0.5, 0.5], 1), "expected integers of shape"),
        (lambda: encode([[0]], [[1, 1]], 2), "expected shape \\[V\\], got \\(1, 2\\)"),
        (lambda: encode([[0]], [1, 1], LARGEST_TOTAL + 1), "total of a range coder is 1..262144"),
        (lambda: encode([[0], [0, 2]], [1, 1], 2), "symbol 2 at 1 is outside the coder's alphabet 0..1"),
        (lambda: encode([[0.5]], [1, 1], 2), "text 0: expected a sequence of integers"),
        (lambda: decode([b""], [1, 2], [1, 1], 2), "1 codes and 2 lengths"),
        (lambda: decode([b""], [-1], [1, 1], 2), "lengths must not be negative"),
        (lambda: quantise([0.0, 0.0]), "every row must have a finite sum above 0"),
        (lambda: quantise([0.5, -0.5]), "finite and not negative"),
        (lambda: quantise([0.5, float("nan")]), "finite and not negative"),
        (lambda: quantise([0.5, 0.5], 1), "2 symbols need a total of at least as many, got 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
