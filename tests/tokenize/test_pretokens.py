"""Splitting rules: lossless on any bytes, and as the library tokenizers splits."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.digits import carries, commas, group_digits
from jaxlm.tokenize.pretokens import GPT2, split, words_of

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES = [
    "space",
    "lines",
    "whitespace",
    "gpt2",
    "digits",
    "digits_l2r_3",
    "digits_r2l_3",
    "digits_r2l_2",
    f"regex:{LLAMA3}",
]
# Characters that this Python's Unicode knows: newer ones are letters in one package and nothing in another.
KNOWN = st.characters(exclude_categories=("Cs", "Cn"))
LIKE_TEXT = st.lists(
    st.sampled_from(
        ["it's", "I'LL", " ", "  ", "\n", "\r\n", "\t", "x1", "2024", "1", "é", "日本", "٣٤", "½", "🦊", "…"]
    )
)
TEXT = st.one_of(st.text(KNOWN), LIKE_TEXT.map("".join))


@pytest.mark.parametrize(
    "rules", [(), *((rule,) for rule in RULES), ("gpt2", "digits_r2l_3"), ("lines", "digits", "space")], ids=str
)
@given(
    data=st.one_of(
        st.binary(), TEXT.map(str.encode), st.lists(st.sampled_from([b" ", b"\xe6", b"1", b"a\xff"])).map(b"".join)
    )
)
def test_nothing_is_lost(rules, data):
    pieces = split(data, rules)
    assert b"".join(pieces) == data and all(pieces)


@pytest.mark.parametrize(
    ("rule", "text", "pieces"),
    [
        ("space", "a b  c ", ["a", " b", " ", " c", " "]),
        ("space", " a", [" a"]),
        ("lines", "a\n\nb", ["a\n", "\n", "b"]),
        ("whitespace", "a \tb\n", ["a", " \t", "b", "\n"]),
        ("gpt2", "it's  2 days…", ["it", "'s", " ", " 2", " days", "…"]),
        ("digits", "a12 ٣٤", ["a", "1", "2", " ", "٣", "٤"]),
        ("digits_l2r_3", "v1234567x", ["v", "123", "456", "7", "x"]),
        ("digits_r2l_3", "v1234567x", ["v", "1", "234", "567", "x"]),
        ("digits_r2l_3", "123456", ["123", "456"]),
        ("digits_l2r_10", "12345678901", ["1234567890", "1"]),
        ("regex:[aeiou]", "queue it", ["q", "u", "e", "u", "e", " ", "i", "t"]),
    ],
)
def test_by_hand(rule, text, pieces):
    assert [piece.decode() for piece in split(text.encode(), (rule,))] == pieces


def test_bytes_that_are_no_text_survive():
    assert split(b"a\xff\xfe b\xe6\x97", ("gpt2",)) == [b"a", b"\xff\xfe", b" b", b"\xe6\x97"]
    assert split(b"1\xff23", ("digits_l2r_2",)) == [b"1", b"\xff", b"23"]


def of_library(step, text):
    return [piece for piece, _ in step.pre_tokenize_str(text)]


ISOLATED = {
    "gpt2": GPT2,
    f"regex:{LLAMA3}": LLAMA3,
    "digits_l2r_3": r"[0-9]{1,3}|\p{Nd}",
    "digits_r2l_3": r"[0-9]{1,3}(?=([0-9]{3})*(?![0-9]))|\p{Nd}",
}


@pytest.mark.parametrize("rule", ISOLATED)
@given(TEXT)
def test_expressions_as_the_library(rule, text):
    expected = of_library(pre_tokenizers.Split(Regex(ISOLATED[rule]), "isolated"), text)
    assert [piece.decode() for piece in split(text.encode(), (rule,))] == expected


def test_letters_numbers_and_spaces_as_the_library():
    """Every character that this Python's Unicode knows."""
    text = "".join(chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cs", "Cn"))
    for pattern in (r"\p{L}", r"\p{N}", r"\p{Nd}", r"\s"):
        expected = of_library(pre_tokenizers.Split(Regex(pattern), "isolated"), text)
        assert [piece.decode() for piece in split(text.encode(), (f"regex:{pattern}",))] == expected


@given(st.from_regex("[0-9]{1,20}", fullmatch=True), st.integers(1, 7))
def test_groups_of_digits(number, size):
    left, right = group_digits(number, size, "l2r"), group_digits(number, size, "r2l")
    assert "".join(left) == "".join(right) == number
    assert [len(group) for group in left[:-1]] == [size] * (len(left) - 1) and 1 <= len(left[-1]) <= size
    assert [len(group) for group in right] == [len(group) for group in left][::-1]
    assert commas(number, size).split(",") == right
    if number[0] != "0":
        assert commas(number) == f"{int(number):,}"


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_carries(a, b):
    carry, places = 0, []
    for place in range(13):
        carry = (a // 10**place % 10 + b // 10**place % 10 + carry) // 10
        places += [place] * carry
    assert carries(a, b) == places


def test_words_are_counted():
    assert words_of(["a b a", b" b"], ("space",)) == {(97,): 1, (32, 98): 2, (32, 97): 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split(b"a", ("spaces",)), "unknown splitting rule 'spaces'; did you mean 'space'"),
        (lambda: split(b"a", ("digits_l2r_0",)), "unknown splitting rule 'digits_l2r_0'; did you mean 'digits_l2r_N'"),
        (lambda: split(b"a", ("regex:(",)), r"splitting rule 'regex:\('"),
        (lambda: group_digits("1", 0), "by 1 or more, not by 0"),
        (lambda: group_digits("1", 3, "rtl"), "did you mean 'r2l'"),
        (lambda: commas("1.5"), "not into '1.5'"),
        (lambda: commas("٣"), "digits 0-9"),
        (lambda: carries(-1, 2), "natural numbers"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_without_the_package(monkeypatch):
    from jaxlm.tokenize import pretokens

    monkeypatch.setitem(__import__("sys").modules, "regex", None)
    with pytest.raises(ConfigError, match=r"needs regex: pip install 'jaxlm\[tokenize\]'"):
        pretokens.rule_of.__wrapped__("gpt2")
