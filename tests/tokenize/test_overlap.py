"""Tokens of two vocabularies by their bytes: the counterpart of each, and how one spells the other's."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import EOS
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.hf import HfTokenizer
from jaxlm.tokenize.overlap import check_complete, overlap, pieces_of
from tests.tokenize.test_hf import TEXT, byte_level, fallback_bpe, fallback_unigram, word_piece


def incomplete():
    """A byte-level vocabulary that lacks most bytes, as the trainer makes it without its alphabet."""
    library = Tokenizer(models.BPE(vocab={"t": 0, "h": 1, "e": 2, "th": 3, "the": 4}, merges=[("t", "h"), ("th", "e")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def hf(folder, library, **settings):
    folder.mkdir(parents=True)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return HfTokenizer(str(folder))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "byte": ByteTokenizer(),
        "bpe": BpeTokenizer.train(TEXT, 300),
        "byte_level": hf(folder / "a", byte_level(), eos_token="<|endoftext|>", bos_token="<|endoftext|>"),
        "fallback_bpe": hf(folder / "b", fallback_bpe(), bos_token="<s>", eos_token="</s>"),
        "fallback_unigram": hf(folder / "c", fallback_unigram(), eos_token="</s>", pad_token="<pad>"),
    }


def test_a_tokenizer_is_its_own_counterpart(tokenizers):
    for name, one in tokenizers.items():
        np.testing.assert_array_equal(overlap(one, one), np.arange(one.vocab_size), err_msg=name)


def test_counterparts_have_the_same_bytes(tokenizers):
    for source, target in itertools.permutations(tokenizers.values(), 2):
        found, known = overlap(source, target), set(source.token_bytes)
        special = set(target.special_ids.values())
        assert found.shape == (target.vocab_size,) and found.max() < source.vocab_size
        for i, j in enumerate(found):
            piece = target.token_bytes[i]
            assert (j >= 0) == (piece in known) if piece else i in special or j < 0
            assert j < 0 or source.token_bytes[j] == piece
        ends = {source.special_ids[EOS], *source.stop_ids}
        assert found[target.special_ids[EOS]] in ends


def test_spelling_gives_the_bytes_back(tokenizers):
    """Also of tokens that are half a character, or that a tokenizer puts a space before."""
    for source, target in itertools.permutations(tokenizers.values(), 2):
        found = pieces_of(source, target.token_bytes)
        assert [b"".join(source.token_bytes[i] for i in ids) for ids in found] == list(target.token_bytes)
    byte_level, unigram = tokenizers["byte_level"], tokenizers["fallback_unigram"]
    assert [len(ids) for ids in pieces_of(byte_level, [b" the", b""])] == [1, 0]
    assert pieces_of(unigram, [b"\xe6\x97"])[0] == [unigram.token_bytes.index(bytes([b])) for b in b"\xe6\x97"]


def test_bytes_that_are_spelt_twice(tokenizers):
    """A byte and its fallback: pairs in order where both have two, else the one that encoding makes."""
    source, one = tokenizers["fallback_bpe"], ByteTokenizer()
    twice = [i for i, piece in enumerate(source.token_bytes) if piece == b"e"]
    assert len(twice) == 2
    canonical = [i for i in source.encode(b"e").tolist() if source.token_bytes[i] == b"e"]
    assert overlap(source, one)[ord("e")] == canonical[0]
    np.testing.assert_array_equal(overlap(one, source)[twice], [ord("e")] * 2)
    np.testing.assert_array_equal(overlap(source, source)[twice], twice)


def test_what_is_refused(tokenizers, tmp_path):
    few, words = hf(tmp_path / "few", incomplete()), hf(tmp_path / "words", word_piece())
    for one in tokenizers.values():
        check_complete(one)
    for call, message in [
        (lambda: check_complete(few), "no token for 253 of the 256 bytes \\(the first: 0x00\\)"),
        (lambda: pieces_of(few, [b"the", b"then"]), "cannot spell the new token b'then': it has no byte 0x6E"),
        (lambda: overlap(words, tokenizers["byte"]), "does not give bytes token by token"),
        (lambda: overlap(tokenizers["byte"], words), "does not give bytes token by token"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert pieces_of(few, [b"the"]) == [[4]]
