"""Windows: against their definitions cell by cell, their inverses, and as tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.compress.equal_info import (
    Window,
    cells_to_tokens,
    decode_self_delimiting,
    decode_windows,
    encode_self_delimiting,
    encode_windows,
    tokens_to_cells,
)
from jaxlm.compress.rational import StaticModel, ideal_bits
from jaxlm.core.errors import ConfigError
from tests.compress.models import echo, inside, interval_of, laplace, text_of_cell, texts

BITS = st.integers(9, 20)  # every model of the tests has a cell for every symbol, from 9 bits on


@given(texts(), BITS)
def test_windows_round_trip(given_text, bits):
    model, symbols = given_text
    windows = encode_windows(model, symbols, bits)
    assert decode_windows(model, windows, bits) == symbols
    assert all(count >= 1 and 0 <= cell < 2**bits for count, cell in windows)
    assert sum(count for count, _ in windows) == len(symbols)


@given(texts(longest=12), BITS)
def test_windows_are_the_longest_with_the_smallest_cell(given_text, bits):
    model, symbols = given_text
    start = 0
    for count, cell in encode_windows(model, symbols, bits):
        window, longer = symbols[start : start + count], symbols[start : start + count + 1]
        low, high = interval_of(model, window)  # of the window alone: model and coder start anew
        assert inside(cell, bits, (low, high)) and (cell - 1) / 2**bits < low
        assert ideal_bits(model, window) <= bits + 1e-9
        if len(longer) > count:
            low, high = interval_of(model, longer)
            first = -(-low * 2**bits // 1)
            assert not inside(first, bits, (low, high))
        start += count
    assert start == len(symbols)


@given(texts(least=2), BITS)
def test_self_delimiting_round_trip(given_text, bits):
    model, symbols = given_text
    cells = encode_self_delimiting(model, symbols, bits)
    if cells is not None:
        assert decode_self_delimiting(model, cells, bits) == symbols


MODELS = [
    StaticModel((5, 2)),
    StaticModel((3, 5, 4, 1)),
    StaticModel((12, 4)),
    StaticModel((7, 1, 3)),
    laplace(3),
    echo,
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bits", [3, 7])
def test_every_cell_decodes_to_its_longest_text(model, bits):
    """The whole table of a window: cells to texts by definition, and the encoder as a search in that table."""
    table = [text_of_cell(model, cell, bits) for cell in range(2**bits)]
    for cell, text in enumerate(table):
        if text:
            assert decode_self_delimiting(model, [cell], bits) == text
            assert encode_self_delimiting(model, text, bits) == [table.index(text)]
            assert decode_windows(model, [(len(text), cell)], bits) == text
        else:
            with pytest.raises(ConfigError, match=f"cell {cell} holds no symbol"):
                decode_self_delimiting(model, [cell], bits)
    rng = np.random.default_rng(bits)
    size = len(model([])) if not isinstance(model, StaticModel) else len(model.frequencies)
    parses = 0
    for _ in range(40):
        symbols = rng.integers(0, size, 12).tolist()
        expected, rest = [], symbols
        while rest and expected is not None:
            fitting = [n for n in range(1, len(rest) + 1) if rest[:n] in table]
            if not fitting:
                expected = None
                break
            expected.append(table.index(rest[: max(fitting)]))
            rest = rest[max(fitting) :]
        assert encode_self_delimiting(model, symbols, bits) == expected
        parses += expected is not None
    assert parses or bits == 3


def test_a_prime_total_parses_where_a_power_of_two_does_not():
    assert encode_self_delimiting(StaticModel((12, 4)), [0], 8) is None
    assert encode_self_delimiting(StaticModel((13, 4)), [0], 8) is not None


def test_empty_texts_and_one_symbol():
    model, one = StaticModel((5, 2)), StaticModel((9,))
    assert encode_windows(model, []) == [] == decode_windows(model, [])
    assert encode_self_delimiting(model, []) == [] == decode_self_delimiting(model, [])
    assert encode_windows(one, [0] * 50, 8) == [Window(50, 0)] and decode_windows(one, [(50, 0)], 8) == [0] * 50
    assert encode_self_delimiting(one, [0], 8) is None  # every cell contains longer texts still
    assert encode_self_delimiting(one, [], 8) == [] == decode_self_delimiting(one, [], 8)


@given(st.lists(st.integers(0, 2**24 - 1), max_size=20), st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]))
def test_tokens_round_trip(cells, token_bits):
    ids = cells_to_tokens(cells, 24, token_bits)
    assert ids.dtype == np.int32 and ids.shape == (len(cells) * 24 // token_bits,)
    assert tokens_to_cells(ids, 24, token_bits) == cells


def test_tokens_are_the_bits_in_order():
    assert cells_to_tokens([0x1234, 0xABCD]).tolist() == [0x1234, 0xABCD]
    assert cells_to_tokens([0x1234, 0xABCD], token_bits=8).tolist() == list(b"\x12\x34\xab\xcd")
    assert tokens_to_cells([0x12, 0x34], 16, 8) == [0x1234]
    wide = [2**60 + 5]
    assert tokens_to_cells(cells_to_tokens(wide, 64, 8), 64, 8) == wide


RARE = StaticModel((60, 1, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode_windows(RARE, [0, 0, 1], 4), "symbol 1 at 2 fits in no window of 4 bits: .* at least 2\\^-3"),
        (lambda: encode_windows(lambda _: [1, 0], [0], 8), "coder models whose probabilities are zero"),
        (lambda: encode_self_delimiting(lambda _: [1, 0], [0], 8), "coder models whose probabilities are zero"),
        (lambda: decode_self_delimiting(lambda _: [1, 0], [0], 8), "coder models whose probabilities are zero"),
        (lambda: encode_windows(RARE, [0, 3], 8), "symbol 3 at 1 is outside the coder's alphabet 0..2"),
        (lambda: encode_windows(RARE, [0], 0), "window_bits must be at least 1, got 0"),
        (lambda: decode_windows(RARE, [(1, 256)], 8), "window 0: cell 256 is outside 0..255 of 8 bits"),
        (lambda: decode_windows(RARE, [(1, 0), (0, 0)], 8), "window 1: expected at least one symbol, got 0"),
        (lambda: decode_windows(RARE, [(3, 255)], 8), "window 0: cell 255 holds 1 symbols under this model, not 3"),
        (lambda: decode_self_delimiting(StaticModel((9,)), [0], 8), "need at least two symbols"),
        (lambda: decode_self_delimiting(RARE, [-1], 8), "cell -1 is outside"),
        (lambda: cells_to_tokens([1], 16, 5), "token_bits must divide window_bits 16 and be at most 30, got 5"),
        (lambda: cells_to_tokens([1], 32, 32), "at most 30, got 32"),
        (lambda: cells_to_tokens([1 << 16], 16, 8), "cell 65536 is outside"),
        (lambda: tokens_to_cells([1, 2, 3], 16, 8), "a window of 16 bits is 2 tokens of 8; 3 tokens"),
        (lambda: tokens_to_cells([256, 0], 16, 8), "token ids of 8 bits are 0..255, got \\[256\\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_symbol_without_a_cell_has_no_self_delimiting_parse():
    assert encode_self_delimiting(RARE, [0, 0, 1], 4) is None
