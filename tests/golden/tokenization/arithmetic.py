"""Arithmetic coding: the whole-text code, equal-info windows and self-delimiting windows, decoded again."""

from __future__ import annotations

import pytest

from jaxlm.compress import equal_info, range_coder, rational
from jaxlm.compress.rational import Code, StaticModel
from tests.golden.tokenization.data import files


def records(golden):
    """(case, model, symbols, record) for every text of every file."""
    found = []
    for file in files(golden, "arithmetic_coding"):
        for case in file["cases"]:
            assert sum(case["freq"]) == case["total"] and len(case["freq"]) == len(case["alphabet"])
            model = StaticModel(tuple(case["freq"]))
            for record in case["records"]:
                found.append((case, model, [case["alphabet"].index(c) for c in record["text"]], record))
    assert found
    return found


def test_whole_text_code(golden):
    for _, model, symbols, record in records(golden):
        code = rational.encode(model, symbols)
        assert code == Code(record["code_bits"], record["code_value"])
        assert rational.decode(model, code, len(symbols)) == symbols
        assert rational.ideal_bits(model, symbols) == pytest.approx(record["ideal_bits"], abs=1e-9)


def test_equal_info_windows(golden):
    for case, model, symbols, record in records(golden):
        bits = case["window_bits"]
        windows = equal_info.encode_windows(model, symbols, bits)
        assert [list(window) for window in windows] == record["windows"]
        assert equal_info.decode_windows(model, record["windows"], bits) == symbols


def test_self_delimiting_windows(golden):
    for case, model, symbols, record in records(golden):
        bits = case["window_bits"]
        cells = equal_info.encode_self_delimiting(model, symbols, bits)
        assert cells == record["self_delimiting"]
        if cells is not None:
            assert equal_info.decode_self_delimiting(model, cells, bits) == symbols


def test_range_coder_is_as_short(golden):
    """The fast coder has a code of its own, of whole bytes; its length and its decoding are held to the file."""
    for case, model, symbols, record in records(golden):
        if case["total"] > range_coder.LARGEST_TOTAL:
            continue
        (code,) = range_coder.encode([symbols], model.frequencies, case["total"])
        (found,) = range_coder.decode([code], [len(symbols)], model.frequencies, case["total"])
        assert found.tolist() == symbols
        assert 8 * len(code) <= 1.001 * record["ideal_bits"] + 8
