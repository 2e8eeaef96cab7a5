"""Covers, which token may follow which, and sums over a vocabulary, each against exhaustive search."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.adjacency import adjacency_of
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.byte_trie import NOWHERE, ByteTrie
from jaxlm.tokenize.covers import Pieces, all_covers, covers, is_canonical, usable_pieces
from jaxlm.tokenize.hf import HfTokenizer
from jaxlm.tokenize.super_bpe import SuperBpeTokenizer

RULES = [(), ("space",), ("lines",), ("whitespace",), ("space", "lines")]


def random_bpe(seed, alphabet=b"ab c\n", split=()):
    """Merges of any pairs at all, dead and doubled ones among them."""
    rng = random.Random(seed)
    letters, merges = alphabet[: rng.randint(1, len(alphabet))], []
    for _ in range(rng.randint(0, 9)):
        ids = [*letters, *range(256, 256 + len(merges))]
        pair = (rng.choice(ids), rng.choice(ids))
        if pair not in merges:
            merges.append(pair)
    return BpeTokenizer(tuple(merges), split=split), [*letters, *range(256, 256 + len(merges))]


@pytest.mark.parametrize("split", RULES)
@pytest.mark.parametrize("seed", range(8))
def test_neighbours_decide_encodings(seed, split):
    """A sequence is an encoding if and only if its tokens are and neighbours may be; and so is what it begins with."""
    tokenizer, ids = random_bpe(100 * seed + len(split), split=split)
    rule = adjacency_of(tokenizer)
    follows = {u: rule.after(u) for u in ids}
    for size in (1, 2, 3):
        for sequence in itertools.product(ids, repeat=size):
            pairs = zip(sequence, sequence[1:], strict=False)
            may = rule.usable[list(sequence)].all() and all(follows[u][v] for u, v in pairs)
            assert may == is_canonical(tokenizer, sequence), (tokenizer.merges, sequence)
            assert not may or is_canonical(tokenizer, sequence[:-1])
    assert rule.after(None).tolist() == rule.usable.tolist()


@given(st.integers(0, 2**32), st.sampled_from([*RULES, ("gpt2",), ("digits_r2l_3",)]), st.text("ab c\n1", max_size=5))
@settings(max_examples=60)
def test_covers_are_the_valid_ones_of_all(seed, split, prefix):
    tokenizer, ids = random_bpe(seed, b"ab c\n1", split)
    every = covers(tokenizer, prefix, ids, valid=False)
    assert len(set(every)) == len(every)
    for cover in every:
        text = tokenizer.decode_bytes(cover)
        assert text.startswith(prefix.encode()) and len(tokenizer.decode_bytes(cover[:-1])) < len(prefix.encode())
    assert covers(tokenizer, prefix, ids) == [cover for cover in every if is_canonical(tokenizer, cover)]


def hf_folder(folder, pre_tokenizer, decoder, **model):
    """A tokenizer.json of byte pair encoding, learned from a few words."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE(**model))
    library.pre_tokenizer, library.decoder = pre_tokenizer, decoder
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet() if "ByteLevel" in str(pre_tokenizer) else []
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    library.train_from_iterator(["a baa  abba\n\nab abab, bab  ba" * 9, "the cat   ate the hat"], trainer)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return HfTokenizer.from_folder(folder)


def byte_level(folder, use_regex):
    tokenizers = pytest.importorskip("tokenizers")
    before = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return hf_folder(folder, before, tokenizers.decoders.ByteLevel())


@pytest.mark.parametrize("kind", ["gpt2", "plain", "metaspace"])
def test_covers_of_files(tmp_path, kind):
    """Of each short sequence of tokens: is it an encoding, and of which prefixes a cover?"""
    tokenizers = pytest.importorskip("tokenizers")
    if kind == "metaspace":
        mark = tokenizers.pre_tokenizers.Metaspace()
        tokenizer = hf_folder(tmp_path, mark, tokenizers.decoders.Metaspace())
    else:
        tokenizer = byte_level(tmp_path, kind == "gpt2")
    ids = [i for i, text in enumerate(tokenizer.token_bytes) if text and set(text) <= {*b" ab\n"}]
    found: dict[bytes, set] = {prefix: set() for prefix in (b"a", b"a b", b"\n\na", b"  b", b"ab ", b"b  a")}
    for size in range(1, 5):
        for cover in itertools.product(ids, repeat=size):
            text, before = tokenizer.decode_bytes(cover), len(tokenizer.decode_bytes(cover[:-1]))
            reached = [prefix for prefix in found if text.startswith(prefix) and before < len(prefix)]
            if reached and tokenizer.encode(text).tolist() == list(cover):
                for prefix in reached:
                    found[prefix].add(cover)
    assert any(found.values())
    for prefix, truth in found.items():
        ours = {cover for cover in covers(tokenizer, prefix, ids) if len(cover) < 5}
        assert ours == truth, prefix
    rule = adjacency_of(tokenizer)
    assert (rule is not None) == (kind == "plain")
    if rule is not None:
        for u, v in itertools.product(ids, ids):
            assert rule.after(u)[v] == is_canonical(tokenizer, (u, v))


def test_who_has_the_rule():
    assert adjacency_of(ByteTokenizer()).after(97)[:256].all()
    assert not adjacency_of(ByteTokenizer()).usable[256:].any()
    assert adjacency_of(BpeTokenizer(split=("gpt2",))) is None
    assert adjacency_of(BpeTokenizer(split=("digits_l2r_3",))) is None
    assert adjacency_of(SuperBpeTokenizer()) is None


@given(st.integers(0, 2**32))
@settings(max_examples=100)
def test_sums_over_the_vocabulary(seed):
    rng = np.random.default_rng(seed)
    size, letters = rng.integers(1, 60), rng.integers(254, 256) - rng.integers(1, 4)
    pieces = [bytes(rng.integers(letters, 256, rng.integers(0, 6)).tolist()) for _ in range(size)]
    counted, spelt, seen = rng.random(size) < 0.8, np.zeros(size, bool), set()
    for i, piece in enumerate(pieces):
        if counted[i] and piece and piece not in seen and rng.random() < 0.8:
            spelt[i] = True
            seen.add(piece)
    trie, probs = ByteTrie.of(pieces, counted, spelt), 10.0 ** rng.uniform(-12, 0, size)
    sums = trie.sums(probs)
    assert sums[NOWHERE] == 0
    vocabulary = Pieces.of(pieces, np.flatnonzero(counted).tolist())
    assert trie.longest == vocabulary.longest
    for text in {piece[:k] for piece in pieces for k in range(7)} | {b"\xff" * 9, b"a"}:
        begun = [i for i in range(size) if counted[i] and pieces[i] and pieces[i].startswith(text)]
        np.testing.assert_allclose(sums[trie.walk(text)], probs[begun].sum(), rtol=1e-13)
        assert sorted(vocabulary.starting_with(text).tolist()) == begun
        own = [i for i in begun if spelt[i] and pieces[i] == text]
        assert trie.token[trie.walk(text)] == (own[0] if own else -1)


def test_ends_of_prefixes():
    tokenizer = BpeTokenizer(((97, 98), (256, 99)), split=())
    assert covers(tokenizer, "") == covers(tokenizer, "", valid=False) == []
    assert covers(tokenizer, "ab") == [(256,), (257,)]
    assert covers(tokenizer, "ab", usable_ids=[97, 98]) == []
    assert covers(tokenizer, b"\xff") == [(255,)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: covers(ByteTokenizer(), "a", usable_ids=[300]), "usable_ids: \\[300\\] is outside the 'byte'"),
        (
            lambda: covers(ByteTokenizer(), "a", usable_ids=[256]),
            "no token of the 'byte' tokenizer that stands for bytes",
        ),
        (lambda: covers(ByteTokenizer(), "\ud800"), "lone surrogate"),
        (lambda: usable_pieces(ByteTokenizer(), []), "no token"),
        (lambda: list(all_covers(b"a" * 9, Pieces.of([b"a", b"aa"], [0, 1]), 50)), "9 bytes has more than 50 covers"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_tokens_must_stand_for_bytes(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    library.decoder = tokenizers.decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="does not give bytes token by token"):
        covers(HfTokenizer.from_folder(tmp_path), "a")
