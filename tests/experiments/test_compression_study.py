"""The study of compressed text: what its arms read is the text, and what its lines say of results."""

from __future__ import annotations

import collections
import inspect

import numpy as np
import pytest

from experiments.tokenization import compression
from experiments.tokenization.compression import BITS, CODE, PER_TOKEN, PLAIN, RANDOM, SHUFFLED, STORED, WIDE, WINDOWS
from experiments.tokenization.frame import Results, Row
from jaxlm.compress import equal_info, range_coder
from jaxlm.compress.context_model import ContextModel
from jaxlm.core.errors import ConfigError

STUDY = compression.Compression(piece=700, whole=True)
SIDES = pytest.mark.parametrize("held_out", [False, True])


class Two:
    """Texts that are at hand at once."""

    def __init__(self, most, held_out):
        text = inspect.getsource(inspect).encode()
        self.train_texts, self.test_texts = [text[:3000], text[5000:10_000]], [text[30_000:31_500]]


@pytest.fixture(autouse=True, scope="module")
def texts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "Texts", Two)
        for cached in (compression._source, compression._windows, compression._codes):
            cached.cache_clear()
        yield
        for cached in (compression._source, compression._windows, compression._codes):
            cached.cache_clear()


def source():
    return compression._source(STUDY.order, STUDY.train_bytes, STUDY.test_bytes)


def pieces(label, held_out):
    return [piece.tolist() for piece in STUDY._coded(label, held_out).pieces]


def test_m1_knows_the_training_text_alone():
    model, train, test = source()
    assert (model.frequencies == ContextModel.train([train]).frequencies).all() and test not in train


@SIDES
def test_windows_give_the_text_back(held_out):
    model, *texts = source()
    coded = STUDY._coded(WINDOWS, held_out)
    cells = [equal_info.tokens_to_cells(piece, 16, 8) for piece in coded.pieces]
    text = b"".join(bytes(equal_info.decode_self_delimiting(model, one)) for one in cells)
    assert text == texts[held_out][: coded.num_bytes] and len(texts[held_out]) - len(text) < 5
    assert pieces(WIDE, held_out) == cells


@SIDES
def test_the_code_gives_the_text_back(held_out):
    model, *texts = source()
    codes, plain = (list(map(bytes, pieces(label, held_out))) for label in (CODE, PLAIN))
    assert b"".join(plain) == texts[held_out] and max(map(len, plain)) == STUDY.piece
    found = range_coder.decode(codes, [len(piece) for piece in plain], model.batch, model.total)
    assert [bytes(one.tolist()) for one in found] == plain


@SIDES
def test_controls_are_as_long_and_as_often(held_out):
    assert list(map(len, pieces(RANDOM, held_out))) == list(map(len, pieces(CODE, held_out)))
    one, other = (
        [tuple(pair) for piece in pieces(label, held_out) for pair in np.reshape(piece, (-1, 2)).tolist()]
        for label in (WINDOWS, SHUFFLED)
    )
    assert one != other and collections.Counter(one) == collections.Counter(other)
    assert pieces(RANDOM, False) != pieces(RANDOM, True)


def test_every_piece_stands_behind_a_start():
    stream = compression._stream(compression.Coded([np.array([3, 4]), np.array([5])], 9), 256)
    assert stream.tokens.tolist() == [256, 3, 4, 256, 5] and stream.stops.tolist() == [3, 5]
    assert stream.num_targets == 3 and stream.tokens.dtype == np.uint16


def test_lines():
    found = {WINDOWS: 7.5, SHUFFLED: 7.9, CODE: 8.02, RANDOM: 8.2}
    rows = [Row("", arm, 0, PER_TOKEN, 10, "", value) for arm, value in found.items()]
    rows += [Row("", arm, 0, BITS, 10, "", value) for arm, value in {WINDOWS: 3.1, CODE: 3.0}.items()]
    rows += [Row("", CODE, 0, STORED, 0, "", 2.9)]
    lines = list(STUDY.lines(Results(rows)))
    assert [line.verdict for line in lines] == ["pass", "MISS", "pass", "pass", "MISS"]
    assert "2.900" in STUDY.notes(Results(rows))[0] and list(STUDY.lines(Results([]))) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": -1}, "Compression.order: expected 0 or more"),
        ({"window_bits": 12}, "expected 16 or a larger multiple of 8"),
        ({"window_bits": 24, "whole": True}, "only windows of 16 bits"),
        ({"piece": 0}, "at least 1 byte"),
        ({"readings": 0}, "Compression.readings: expected 1.."),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        compression.Compression(**settings)
