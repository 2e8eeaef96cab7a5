"""Groups of digits from the left and from the right, commas, and carries."""

from __future__ import annotations

import re

from jaxlm.tokenize.digits import carries, commas, group_digits
from jaxlm.tokenize.pretokens import split
from tests.golden.tokenization.data import files


def cut(text: str, rule: str) -> list[str]:
    return [piece.decode() for piece in split(text.encode(), (rule,))]


def test_digit_grouping_of_numbers(golden):
    for file in files(golden, "digit_grouping"):
        assert file["numbers"]
        for case in file["numbers"]:
            number = case["number"]
            kinds = [found for key in case if (found := re.fullmatch("(l2r|r2l)([0-9]+)", key))]
            assert kinds
            for kind in kinds:
                assert group_digits(number, int(kind[2]), kind[1]) == case[kind[0]]
                assert cut(number, f"digits_{kind[1]}_{kind[2]}") == case[kind[0]]
            assert commas(number) == case["commas"]


def test_digit_grouping_of_texts(golden):
    for file in files(golden, "digit_grouping"):
        assert file["texts"]
        for case in file["texts"]:
            for direction in ("l2r", "r2l"):
                assert group_digits(case["text"], 3, direction) == case[direction]
                assert cut(case["text"], f"digits_{direction}_3") == case[direction]


def test_digit_grouping_of_additions(golden):
    for file in files(golden, "digit_grouping"):
        assert file["additions"]
        for case in file["additions"]:
            numbers = case["a"], case["b"], case["a"] + case["b"]
            assert numbers[2] == case["sum"]
            for direction in ("l2r", "r2l"):
                assert [group_digits(str(number), 3, direction) for number in numbers] == case[direction]
            places = carries(case["a"], case["b"])
            assert places == case["carry_positions_from_right"] and len(places) == case["carries"]
            longer = max(len(str(number)) for number in numbers[:2])
            assert (len(str(case["sum"])) == longer) == case["length_match"]
