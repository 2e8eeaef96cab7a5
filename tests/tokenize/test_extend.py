"""Vocabularies extended: old ids stay, every new token is made, an encoding is the old one with neighbours joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxlm.tokenize
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.adjacency import adjacency_of
from jaxlm.tokenize.base import BOS, EOS
from jaxlm.tokenize.bpe import BpeTokenizer, unreachable
from jaxlm.tokenize.bpe_dropout import encode as encode_dropout
from jaxlm.tokenize.bpe_files import from_hf, to_hf
from jaxlm.tokenize.extend import extend, parts
from jaxlm.tokenize.hf import HfTokenizer
from jaxlm.tokenize.overlap import overlap

ENGLISH = "the cat sat on the mat and then the other cat sat on that mat too " * 3
GERMAN = "die katze sitzt auf der matte und dann sitzt die andere katze auf der matte \u00fcber " * 3
OLD = BpeTokenizer.train([ENGLISH], 280)
OTHER = BpeTokenizer.train([GERMAN], 290, specials=("<mask>",))
NEW = extend(OLD, OTHER)
TEXT = st.text(alphabet="adehikntuz \u00fc\n", max_size=40)


def rejoined(tokenizer, extended, ids):
    pieces = parts(tokenizer, extended)
    return [i for token in ids for i in pieces[token]]


def test_old_ids_stay_and_new_ones_follow():
    size = OLD.vocab_size
    assert NEW.token_bytes[:size] == OLD.token_bytes and NEW.special_ids == OLD.special_ids
    assert set(NEW.token_bytes[size:]) <= set(OTHER.token_bytes) - set(OLD.token_bytes)
    assert (overlap(OLD, NEW)[:size] == np.arange(size)).all() and (overlap(OLD, NEW)[size:] == -1).all()
    assert NEW.vocab_size > size + 15 and len(NEW.encode(GERMAN)) < 0.7 * len(OLD.encode(GERMAN))
    assert not [lost for lost in unreachable(NEW) if lost.id >= size]
    assert all(NEW.encode(NEW.token_bytes[i]).tolist() == [i] for i in range(size, NEW.vocab_size))
    assert NEW.encode("katze", bos=True, eos=True)[[0, -1]].tolist() == [OLD.special(BOS), OLD.special(EOS)]


@given(TEXT)
def test_an_encoding_is_the_old_one_with_neighbours_joined(text):
    ids = NEW.encode(text)
    assert NEW.decode(ids) == text
    assert rejoined(OLD, NEW, ids.tolist()) == OLD.encode(text).tolist()


@given(TEXT)
def test_in_two_steps(text):
    """An extended tokenizer is extended like any other; its special tokens stay in the middle."""
    third = extend(NEW, BpeTokenizer.train(["zzaad zzaad kkzt kkzt"], 262, specials=()))
    assert third.special_ids == OLD.special_ids and third.token_bytes[: NEW.vocab_size] == NEW.token_bytes
    assert rejoined(NEW, third, third.encode(text).tolist()) == NEW.encode(text).tolist()


def test_merges_that_do_not_fit():
    """(ab)c where the old vocabulary joins bc first: the new token is a(bc). What takes three tokens is left out."""
    old = BpeTokenizer(((98, 99),), (), ())
    other = BpeTokenizer(((97, 98), (256, 99), (100, 101), (258, 102), (120, 121), (260, 122)), (), ())
    assert extend(old, other).merges == ((98, 99), (97, 98), (97, 256), (100, 101), (259, 102), (120, 121), (261, 122))
    pairs = BpeTokenizer(((98, 99), (99, 100)), (), ())
    made = extend(pairs, BpeTokenizer(((97, 98), (100, 101), (256, 257)), (), ()))  # abde by ab + de
    assert made.merges[2:] == ((97, 98), (100, 101), (258, 259)) and made.specials_after == -1
    left_out = extend(pairs, BpeTokenizer(((97, 98), (256, 99), (257, 100), (101, 101)), (), ()))  # abcd is a bc d
    assert b"abc" in left_out.token_bytes and b"abcd" in left_out.token_bytes  # by abc, which was added before
    alone = extend(pairs, BpeTokenizer(((97, 98), (99, 99), (256, 257)), (), ()))  # abcc is a bc c
    assert b"abcc" not in alone.token_bytes and b"cc" in alone.token_bytes
    spaced = extend(OLD, BpeTokenizer(((ord("q"), ord(" ")), (ord("q"), ord("q"))), (), ()))
    assert spaced.token_bytes[OLD.vocab_size :] == (b"qq",)  # the old rules cut in front of a space


@pytest.mark.parametrize("specials", [(), (BOS, EOS)])
def test_files(tmp_path, specials):
    old = BpeTokenizer(OLD.merges, ("space",), specials)
    new = extend(old, OTHER)
    new.save(tmp_path / "saved.json")
    assert jaxlm.tokenize.load(tmp_path / "saved.json") == new
    to_hf(new, tmp_path)
    theirs, back = HfTokenizer(str(tmp_path)), from_hf(tmp_path)
    assert theirs.token_bytes == new.token_bytes and theirs.special_ids.items() >= new.special_ids.items()
    for text in (ENGLISH, GERMAN, "Katzen \u00fcber\n\x00", ""):
        assert theirs.encode(text).tolist() == new.encode(text).tolist()
        assert back.ids[back.tokenizer.encode(text)].tolist() == new.encode(text).tolist()


def test_what_reads_merges_reads_symbols():
    """Neighbours that may stand, and dropout: by ids, also behind special tokens."""
    rules = adjacency_of(NEW)
    ids = NEW.encode(GERMAN)
    assert all(rules.after(a)[b] for a, b in zip(ids[:-1], ids[1:], strict=True))
    assert not rules.usable[list(NEW.special_ids.values())].any()
    small = [i for i in range(NEW.vocab_size) if len(NEW.token_bytes[i]) == 2][-12:] + [*b"aekt"]
    for a in small:
        for b in small:
            data = NEW.decode_bytes([a, b])
            alone = all(NEW.encode(NEW.token_bytes[i]).tolist() == [i] for i in (a, b))
            assert bool(rules.usable[a] and rules.after(a)[b]) == (alone and NEW.encode(data).tolist() == [a, b])
    rng = np.random.default_rng(0)
    assert encode_dropout(NEW, GERMAN, 0, rng).tolist() == ids.tolist()
    assert NEW.decode(encode_dropout(NEW, GERMAN, 0.3, rng)) == GERMAN


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: extend(OLD, OLD), "extend: the other tokenizer has no token that could be added"),
        (lambda: extend(OLD, BpeTokenizer()), "no token that could be added"),
        (lambda: parts(OLD, OTHER), "parts: the second tokenizer is not the first one extended"),
        (lambda: BpeTokenizer(((97, 98),), specials_after=2), "specials_after: 2, but there are 1 merges"),
        (lambda: BpeTokenizer(specials_after=-2), "specials_after: -2, but there are 0 merges"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ConfigError, match=message) as error:
        wrong()
    assert "\n" not in str(error.value)
