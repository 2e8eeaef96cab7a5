"""The exact coder: against its definition, its inverse, the information of a text, bad input."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.compress.rational import Code, Frequencies, StaticModel, decode, encode, ideal_bits
from jaxlm.core.config import from_dict, to_dict
from jaxlm.core.errors import ConfigError
from tests.compress.models import inside, interval_of, laplace, texts


@given(texts())
def test_round_trip_within_two_bits_of_the_information(given_text):
    model, symbols = given_text
    code, ideal = encode(model, symbols), ideal_bits(model, symbols)
    assert decode(model, code, len(symbols)) == symbols
    assert ideal - 1e-9 <= code.bits < ideal + 2 + 1e-9
    low, high = interval_of(model, symbols)
    assert ideal == pytest.approx(-math.log2(high - low), abs=1e-9)


@settings(max_examples=50)
@given(texts(longest=3))
def test_it_is_the_shortest_and_smallest_cell(given_text):
    model, symbols = given_text
    interval = interval_of(model, symbols)
    expected = next(Code(k, v) for k in itertools.count() for v in range(2**k) if inside(v, k, interval))
    assert encode(model, symbols) == expected


@given(texts(longest=30))
def test_a_code_gives_its_prefixes(given_text):
    model, symbols = given_text
    code = encode(model, symbols)
    for n in range(len(symbols) + 1):
        assert decode(model, code, n) == symbols[:n]


def test_codes_of_one_length_are_prefix_free():
    for model, n in ((StaticModel((3, 1, 5)), 4), (laplace(3), 4), (StaticModel((1, 63)), 6)):
        size = len(getattr(model, "frequencies", (1, 1, 1)))
        codes = [encode(model, text) for text in itertools.product(range(size), repeat=n)]
        cells = sorted((v / 2**k, (v + 1) / 2**k) for k, v in codes)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(cells))


def test_small_cases():
    coin = StaticModel((1, 1))
    assert encode(coin, [1, 0, 1]) == Code(3, 0b101) and ideal_bits(coin, [1, 0, 1]) == 3
    assert encode(coin, []) == Code(0, 0) and decode(coin, Code(0, 0), 0) == [] and ideal_bits(coin, []) == 0
    assert encode(StaticModel((7,)), [0] * 1000) == Code(0, 0)  # an alphabet of one symbol has nothing to say
    assert decode(StaticModel((7,)), Code(0, 0), 1000) == [0] * 1000
    assert encode(StaticModel((1, 2, 1)), b"\1\1") == encode(StaticModel((1, 2, 1)), [1, 1])
    assert from_dict(StaticModel, to_dict(StaticModel((1, 2)))) == StaticModel((1, 2))


@given(st.binary(max_size=300))
def test_bytes_under_an_adaptive_model(data):
    made = {}

    def order_zero(prefix):  # keeps what it has made, as a slow model would
        key = tuple(sorted(prefix[-3:]))
        return made.setdefault(key, Frequencies([1 + 20 * key.count(b) for b in range(256)]))

    assert bytes(decode(order_zero, encode(order_zero, data), len(data))) == data


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StaticModel((3, 0, 1)), "coder models whose probabilities are zero .* symbol 1 has frequency 0"),
        (lambda: StaticModel((3, -2)), "symbol 1 has frequency -2"),
        (lambda: StaticModel(()), "at least one symbol"),
        (lambda: encode(lambda _: [2, 0], [0]), "coder models whose probabilities are zero"),
        (lambda: decode(lambda _: [2, 0], Code(1, 0), 1), "coder models whose probabilities are zero"),
        (lambda: ideal_bits(lambda _: [0.5, 0.5], [0]), "frequencies of a coder are integers"),
        (lambda: encode(StaticModel((1, 1)), [0, 2]), "symbol 2 at 1 is outside the coder's alphabet 0..1"),
        (lambda: encode(StaticModel((1, 1)), [-1]), "symbol -1 at 0"),
        (lambda: decode(StaticModel((1, 1)), Code(2, 4), 1), "0 <= value < 2\\^bits"),
        (lambda: decode(StaticModel((1, 1)), Code(2, 1), -1), "length must not be negative"),
        (lambda: decode(StaticModel((1, 1)), Code(2, 1), 3), "ends after 2 symbols under this model, not 3"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
