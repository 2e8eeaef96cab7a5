"""Bytes as tokens: exact round trips, offsets, the saved file, bad input."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxlm.tokenize
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BOS, EOS, FORMAT, PAD
from jaxlm.tokenize.byte import ByteTokenizer

BYTE = ByteTokenizer()


@given(st.text())
def test_text_round_trip(text):
    ids = BYTE.encode(text)
    assert ids.dtype == np.int32 and len(ids) == len(text.encode())
    assert BYTE.decode(ids) == text


@given(st.binary())
def test_bytes_round_trip(data):
    ids = BYTE.encode(data, bos=True, eos=True)
    assert BYTE.decode_bytes(ids) == data
    assert BYTE.encode(BYTE.decode(ids)).tolist() == list(data)  # through str and back, UTF-8 or not


def test_every_byte_is_its_own_id_and_specials_follow():
    assert BYTE.encode(bytes(range(256))).tolist() == list(range(256))
    assert BYTE.special_ids == {BOS: 256, EOS: 257, PAD: 258} and BYTE.vocab_size == 259
    assert BYTE.encode("a", bos=True, eos=True).tolist() == [256, 97, 257]
    assert BYTE.encode("<eos>").max() < 256  # text never makes a special token
    assert ByteTokenizer(specials=()).vocab_size == 256
    assert BYTE.encode("").shape == (0,) and BYTE.decode([]) == ""


@given(st.lists(st.integers(0, 258)))
def test_spans_cut_the_bytes(ids):
    data, spans = BYTE.decode_bytes(ids), BYTE.spans(ids)
    assert spans.shape == (len(ids), 2)
    assert [data[a:b] for a, b in spans] == [BYTE.token_bytes[i] for i in ids]


def test_save_and_load(tmp_path):
    for tokenizer in (BYTE, ByteTokenizer(specials=(EOS,)), ByteTokenizer.train(["x"], vocab_size=259)):
        tokenizer.save(tmp_path / "t.json")
        assert ByteTokenizer.load(tmp_path / "t.json") == tokenizer == jaxlm.tokenize.load(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "got 'list'"),
        ('{"format": "jaxlm.tokenizer/9"}', "jaxlm.tokenizer/9"),
        (json.dumps({"format": FORMAT, "name": "bytes", "args": {}}), "did you mean 'byte'"),
        (json.dumps({"format": FORMAT, "name": "byte", "args": {"special": []}}), "did you mean 'specials'"),
    ],
)
def test_damaged_files(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        jaxlm.tokenize.load(tmp_path / "t.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BYTE.decode([65, 259]), "token id 259 is outside the 'byte' tokenizer's 0..258"),
        (lambda: BYTE.decode([-1]), "token id -1"),
        (lambda: BYTE.decode([[1]]), "expected token ids of shape"),
        (lambda: BYTE.decode([1.5]), "integer dtype"),
        (lambda: BYTE.encode("ab\ud800"), "lone surrogate U\\+D800 at character 2"),
        (lambda: ByteTokenizer.train(vocab_size=300), "has 259 ids"),
        (lambda: ByteTokenizer(specials=("<a>", "<a>")), "repeated"),
        (lambda: ByteTokenizer(specials=()).encode("a", eos=True), "has no <eos>; its special tokens: \\(none\\)"),
        (lambda: ByteTokenizer.load("no/such.json"), "cannot read tokenizer no/such.json: No such file"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
