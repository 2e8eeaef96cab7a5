"""Fill in the middle: nothing is lost, cuts lie between characters, and everything is a function of (seed, index)."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.data.fill_in_middle import MARKS, ContextLevel, FillInMiddle, arrange
from jaxlm.data.loader import Loader
from jaxlm.data.pack import Packed, TokenStream
from jaxlm.data.records import Document
from jaxlm.tokenize.base import BOS, EOS, PAD
from jaxlm.tokenize.byte import ByteTokenizer

BYTE = ByteTokenizer(specials=(BOS, EOS, PAD, *MARKS))
P, S, M = (BYTE.special(mark) for mark in MARKS)
TEXTS = ["", "x", "naïve", "日本語 text", "a longer line of text\n" * 3]
DOCUMENTS = [Document(f"d{i}", text.encode()) for i, text in enumerate(TEXTS * 4)]


def restored(ids):
    """The text of a document however it is arranged, and the order that its marks show; by the marks alone."""
    ids = [int(i) for i in ids]
    if P not in ids:
        return bytes(ids), None
    p, s, m = ids.index(P), ids.index(S), ids.index(M)
    if s == p + 1:
        return bytes(ids[m + 1 :] + ids[s + 1 : m]), "spm"  # prefix and middle, then suffix
    if s < p:
        return bytes(ids[p + 1 : m] + ids[m + 1 :] + ids[s + 1 : p]), "spm_plain"
    return bytes(ids[p + 1 : s] + ids[m + 1 :] + ids[s + 1 : m]), "psm"


@given(st.text(), st.integers(0, 1000), st.sampled_from(["psm", "spm_plain"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_nothing_is_lost(text, index, plain, joined):
    how = FillInMiddle(seed=3, rate=1.0, joined=joined, plain=plain)
    data = text.encode("utf-8", "surrogatepass")
    ids = how.ids(data, BYTE, index)
    back, order = restored(ids)
    found = how.cut(data, index)
    assert found is not None and b"".join(found[0]) == data
    pieces, said = found
    assert said == ("spm" if joined == 1 else plain if joined == 0 else said)
    assert len(ids) == len(data) + 3
    if pieces[0] or order == said:  # an empty prefix looks the same in both orders
        assert (back, order) == (data, said)
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    for piece in pieces:
        piece.decode()  # no character is cut


def test_cuts_are_uniform_and_independent():
    """The two cuts of a text of 3 characters: 16 ordered pairs, as 10 pairs of (first, last)."""
    how = FillInMiddle(rate=1.0)
    counts = collections.Counter()
    for i in range(4000):
        (prefix, middle, _), _ = how.cut("aéb".encode(), i)
        counts[len(prefix.decode()), len(prefix.decode()) + len(middle.decode())] += 1
    for first, last in itertools.combinations_with_replacement(range(4), 2):
        expected = 4000 * (1 if first == last else 2) / 16
        assert abs(counts[first, last] - expected) < 5 * expected**0.5


def test_rate_and_orders():
    how = FillInMiddle(seed=1, rate=0.3, joined=0.25, plain="spm_plain")
    orders = collections.Counter(found[1] if (found := how.cut(b"some text", i)) else "as it is" for i in range(4000))
    for name, share in {"as it is": 0.7, "spm": 0.075, "spm_plain": 0.225}.items():
        assert abs(orders[name] - 4000 * share) < 5 * (4000 * share) ** 0.5
    assert FillInMiddle(rate=0.0).cut(b"some text", 7) is None


def test_documents_by_seed_and_index():
    how = FillInMiddle(seed=5, rate=0.7)
    stream, again = how.encode(DOCUMENTS, BYTE), how.encode(DOCUMENTS, BYTE)
    np.testing.assert_array_equal(stream.tokens, again.tokens)
    other = FillInMiddle(seed=6, rate=0.7).encode(DOCUMENTS, BYTE)
    assert stream.tokens.tolist() != other.tokens.tolist()
    starts = np.concatenate([[0], stream.stops[:-1]])
    full = [document for document in DOCUMENTS if document.text]
    for start, stop, learned, document in zip(starts, stream.stops, stream.learned, full, strict=True):
        ids = stream.tokens[start:stop]
        assert ids[0] == BYTE.special(BOS) and ids[-1] == BYTE.special(EOS) and learned == start + 1
        assert restored(ids[1:-1])[0] == document.text or P in ids
    plain = FillInMiddle(rate=0.0).encode(DOCUMENTS, BYTE)
    np.testing.assert_array_equal(plain.tokens, TokenStream.encode(DOCUMENTS, BYTE).tokens)
    asked = [Document("q", b"answer", b"question")]  # with a prompt it stays as it is
    made, same = FillInMiddle(rate=1.0).encode(asked, BYTE), TokenStream.encode(asked, BYTE)
    assert (made.tokens.tolist(), made.learned.tolist()) == (same.tokens.tolist(), same.learned.tolist())


def test_context_level_rows():
    packed = Packed(TokenStream.encode(DOCUMENTS, BYTE), 48)
    rows = ContextLevel(packed, FillInMiddle(rate=1.0, joined=0.5), BYTE)
    assert len(rows) == len(packed)
    marked = 0
    for i in range(len(rows)):
        old, new = packed[i], rows[i]
        assert {name: x.shape for name, x in new.items()} == {name: x.shape for name, x in old.items()}
        for k in range(1, new["segment_ids"].max() + 1):
            piece = new["tokens"][new["segment_ids"] == k]
            whole = k < new["segment_ids"].max() or piece[-1] == BYTE.special(EOS)
            before = [t for t in old["tokens"][old["segment_ids"] == k] if t < 256]
            if whole:  # not cut by the row's end
                body = [t for t in piece if t not in (BYTE.special(BOS), BYTE.special(EOS))]
                assert sorted(t for t in body if t < 256) == sorted(before)
                marked += P in body
            positions = new["positions"][new["segment_ids"] == k]
            assert positions.tolist() == list(range(len(piece)))
        real = new["segment_ids"] > 0
        follows = real[:-1] & (new["segment_ids"][1:] == new["segment_ids"][:-1])
        np.testing.assert_array_equal(new["targets"][:-1][follows], new["tokens"][1:][follows])
    assert marked > 5
    batch = Loader(rows, 3, seed=2)(1)
    np.testing.assert_array_equal(batch["tokens"], Loader(rows, 3, seed=2)(1)["tokens"])
    same = ContextLevel(packed, FillInMiddle(rate=0.0), BYTE)
    for i in range(len(same)):
        np.testing.assert_array_equal(same[i]["tokens"], packed[i]["tokens"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FillInMiddle(rate=1.5), r"FillInMiddle.rate: expected a share in \[0, 1\]"),
        (lambda: FillInMiddle(joined=-0.1), "FillInMiddle.joined"),
        (lambda: FillInMiddle(seed=-1), "FillInMiddle.seed"),
        (lambda: FillInMiddle(level="row"), "unknown FillInMiddle.level 'row'"),
        (lambda: FillInMiddle(plain="spm"), "unknown FillInMiddle.plain 'spm'"),
        (lambda: FillInMiddle(marks=("a", "a", "b")), "three different tokens"),
        (lambda: arrange([[1], [2], [3]], "msp", (7, 8, 9)), "unknown order 'msp'"),
        (lambda: FillInMiddle().encode(DOCUMENTS, ByteTokenizer()), "has no <fim_prefix>"),
        (lambda: FillInMiddle().encode([], BYTE), "no document"),
        (lambda: ContextLevel(Packed(TokenStream.encode(DOCUMENTS, BYTE), 8), FillInMiddle(), ByteTokenizer()),
         "has no <fim_prefix>"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
