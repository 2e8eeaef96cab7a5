"""Rows from documents: every token kept once, every target once, none across documents, prompts masked."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.data.pack import LAYOUTS, Packed, Padded, TokenStream, rows
from jaxlm.data.records import Document
from jaxlm.tokenize.byte import ByteTokenizer

BYTE = ByteTokenizer()
BOS, EOS, PAD = 256, 257, 258
DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segment_ids": np.int32,
    "positions": np.int32,
}
DOCUMENTS = st.builds(Document, st.just("d"), st.binary(min_size=1, max_size=12), st.binary(max_size=5))
CORPORA = st.lists(DOCUMENTS, min_size=1)


def slow_rows(documents, length, layout):
    """The obvious loop: one row a dict of lists."""
    cells = []  # (document, token, target or None, weight)
    for number, document in enumerate(documents):
        tokens = [BOS, *document.prompt, *document.text, EOS]
        for i, token in enumerate(tokens):
            follows = i + 1 < len(tokens)
            weight = float(follows and i + 1 > len(document.prompt))
            cells.append((number, token, tokens[i + 1] if follows else PAD, weight))
    if layout == "pack":
        pieces = [cells[i : i + length] for i in range(0, len(cells), length)]
    else:
        each = [[cell for cell in cells if cell[0] == number] for number in range(len(documents))]
        pieces = [one[i : i + length] for one in each for i in range(0, len(one), length)]
    for piece in pieces:
        numbers = [cell[0] for cell in piece]
        blank = length - len(piece)
        yield {
            "tokens": [cell[1] for cell in piece] + [PAD] * blank,
            "targets": [cell[2] for cell in piece] + [PAD] * blank,
            "weights": [cell[3] for cell in piece] + [0.0] * blank,
            "segment_ids": [n - numbers[0] + 1 for n in numbers] + [0] * blank,
            "positions": [i - numbers.index(n) for i, n in enumerate(numbers)] + [0] * blank,
        }


@settings(max_examples=100)
@given(CORPORA, st.integers(2, 20), st.sampled_from(sorted(LAYOUTS)))
def test_equals_the_obvious_loop(documents, length, layout):
    stream = TokenStream.encode(documents, BYTE)
    source = rows(stream, length, layout)
    expected = list(slow_rows(documents, length, layout))
    batch = source.batch(range(len(source)))
    assert {name: array.dtype for name, array in batch.items()} == DTYPES
    assert {array.shape for array in batch.values()} == {(len(expected), length)}
    for name, array in batch.items():
        assert array.tolist() == [row[name] for row in expected], name
    assert batch["weights"].sum() == stream.num_targets


@settings(max_examples=50)
@given(CORPORA, st.integers(2, 20))
def test_both_layouts_keep_every_token_and_every_target_once(documents, length):
    stream = TokenStream.encode(documents, BYTE)
    whole = [[BOS, *d.prompt, *d.text, EOS] for d in documents]
    pairs = sorted(pair for tokens in whole for pair in itertools.pairwise(tokens))
    learned = sum(len(d.text) + 1 for d in documents)
    for source in (Packed(stream, length), Padded(stream, length)):
        batch = source.batch(np.arange(len(source)))
        real = batch["segment_ids"] > 0
        assert batch["tokens"][real].tolist() == [token for tokens in whole for token in tokens]
        follows = real & (batch["targets"] != PAD)
        assert sorted(map(tuple, np.stack([batch["tokens"], batch["targets"]], -1)[follows].tolist())) == pairs
        assert batch["weights"].sum() == learned


def test_a_row_shows_its_next_target_but_never_the_next_document():
    stream = TokenStream.encode([Document("a", b"abc"), Document("b", b"de")], BYTE, bos=False)
    batch = Packed(stream, 4).batch([0, 1])  # a b c <eos> | d e <eos> .
    assert batch["tokens"].tolist() == [[97, 98, 99, EOS], [100, 101, EOS, PAD]]
    assert batch["targets"].tolist() == [[98, 99, EOS, PAD], [101, EOS, PAD, PAD]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    batch = Packed(stream, 3).batch([0, 1, 2])  # a b c | <eos> d e | <eos> . .
    assert batch["targets"].tolist() == [[98, 99, EOS], [PAD, 101, EOS], [PAD, PAD, PAD]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1], [1, 2, 2], [1, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0]]


def test_the_prompt_is_read_but_not_learned():
    row = Padded(TokenStream.encode([Document("a", b"4", b"2+2=")], BYTE), 8)[0]
    assert row["tokens"].tolist() == [BOS, *b"2+2=4", EOS, PAD]
    assert row["targets"].tolist() == [*b"2+2=4", EOS, PAD, PAD]
    assert row["weights"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


def test_any_rows_in_any_order():
    stream = TokenStream.encode([Document("d", bytes(range(i % 250 + 1))) for i in range(0, 3000, 7)], BYTE)
    for source in (Packed(stream, 33), Padded(stream, 33)):
        all_rows = source.batch(np.arange(len(source)))
        chosen = np.random.default_rng(0).permutation(len(source))[:50]
        picked = source.batch(chosen)
        for name in DTYPES:
            np.testing.assert_array_equal(picked[name], all_rows[name][chosen])
            np.testing.assert_array_equal(source[int(chosen[0])][name], all_rows[name][chosen[0]])


def test_stream_is_compact_and_skips_documents_without_text():
    documents = [Document("a", b"", b"prompt alone"), Document("b", b"x"), Document("c", b"")]
    stream = TokenStream.encode(documents, BYTE)
    assert stream.tokens.dtype == np.uint16 and stream.tokens.tolist() == [BOS, 120, EOS] and stream.pad == PAD
    plain = TokenStream.encode(documents, ByteTokenizer(specials=()), bos=False, eos=False)
    assert plain.tokens.dtype == np.uint8 and plain.tokens.tolist() == [120] and plain.num_targets == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: TokenStream.encode([Document("a", b"")], BYTE), ConfigError, "no document to train on"),
        (lambda s: TokenStream.encode([Document("a", b"a")], ByteTokenizer(specials=())), ConfigError, "has no <eos>"),
        (lambda s: Packed(s, 1), ConfigError, "row length: expected at least 2 tokens, got 1"),
        (lambda s: rows(s, 8, "packed"), ConfigError, "unknown layout 'packed'; did you mean 'pack'"),
        (lambda s: Packed(s, 4)[9], IndexError, "row 9 is outside 0..0"),
        (lambda s: Padded(s, 4).batch([0, -1]), IndexError, "row -1 is outside 0..0"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(TokenStream.encode([Document("a", b"a")], BYTE))
