"""Batches for a hypernetwork of embeddings: spelling of a vocabulary, rows of texts, shapes."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.data.tokenizer_transfer import rows_of, snippets, spelling, transfer_batch
from jaxlm.tokenize.base import BOS
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.sampled_unigram import sample_unigram

TEXTS = ["the quick brown fox jumps over the lazy dog", "the lazy dog", "naïve", ""]
SOURCE = BpeTokenizer.train(TEXTS * 2, 275)


@pytest.mark.parametrize("seed", range(3))
def test_spelling(seed):
    target = sample_unigram(TEXTS, 300, np.random.default_rng(seed))
    batch = spelling(SOURCE, target, rows=310, max_pieces=4)
    assert batch["pieces"].shape == batch["piece_mask"].shape == (310, 4)
    known = {piece for piece in SOURCE.token_bytes if piece}
    for i, piece in enumerate(target.token_bytes):
        ids = batch["pieces"][i][batch["piece_mask"][i]]
        spelt = b"".join(SOURCE.token_bytes[j] for j in ids)
        assert (batch["shared"][i] >= 0) == (piece in known)
        if piece:
            assert piece.startswith(spelt) and (spelt == piece or len(ids) == 4) and not batch["copied"][i]
        else:
            assert batch["copied"][i] and len(ids) == 1
    assert batch["pieces"][target.special(BOS)][0] == SOURCE.special(BOS)
    assert not batch["piece_mask"][target.vocab_size :].any() and (batch["shared"][target.vocab_size :] == -1).all()


def test_rows():
    target = ByteTokenizer()
    batch = rows_of(target, TEXTS, 8)
    assert {array.shape for array in batch.values()} == {(4, 8)}
    np.testing.assert_array_equal(batch["tokens"][1], list(b"the lazy"))
    np.testing.assert_array_equal(batch["targets"][1], list(b"he lazy "))
    np.testing.assert_array_equal(batch["weights"].sum(1), [8, 8, 5, 0])
    np.testing.assert_array_equal(batch["segment_ids"], batch["weights"])
    begun = rows_of(SOURCE, TEXTS, 50, bos=True)
    assert begun["tokens"][0, 0] == SOURCE.special(BOS)
    assert begun["bytes"].sum(1).tolist() == [len(text.encode()) for text in TEXTS]  # every byte is predicted


def test_bad_input():
    for call, message in [
        (lambda: spelling(SOURCE, SOURCE, rows=200), "has 275 ids, the batch room for 200"),
        (lambda: rows_of(SOURCE, TEXTS, 0), "length: expected 1 or more"),
        (lambda: transfer_batch(SOURCE, ByteTokenizer(specials=()), TEXTS, 4, bos=True), "has no <bos>"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_snippets_of_texts_of_which_some_are_empty():
    """An ``__init__.py`` with nothing in it once ended the study of surgery after ten minutes."""
    found = snippets([b"", b"one\ntwo\nthree", b""], np.random.default_rng(0), 20, 4)
    assert len(found) == 20 and set(found) <= {b"one\n", b"two\n", b"thre"} and len(set(found)) > 1
