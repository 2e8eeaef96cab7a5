"""Trap words: what a search finds is what trying every pair finds; controls match their traps."""

import itertools

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.adversarial import controls, search
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.path_piece import PathPieceTokenizer

WORDS = {
    "move": 40, "moves": 30, "table": 50, "stable": 20, "able": 9, "the": 90, "me": 35, "them": 25, "in": 80, "to": 85,
    "into": 60, "on": 70, "son": 8, "it": 65, "sit": 12, "as": 55, "hem": 5, "a": 95, "top": 7, "pit": 6, "stop": 14,
    "no": 45, "not": 44, "ten": 13, "note": 11, "stone": 10, "one": 33, "cats": 4, "cat": 15, "us": 3,
}  # fmt: skip
TEXTS = [" ".join([word] * count) for word, count in WORDS.items()]
BPE = BpeTokenizer.train(TEXTS, vocab_size=256 + 3 + 60)


def by_trying_every_pair(tokenizer, prefix):
    """(A, B, T, its score, its span) for every pair of words that are tokens."""
    vocabulary = set(tokenizer.token_bytes)
    parts = [word for word in WORDS if {word.encode(), (prefix + word).encode()} & vocabulary]
    found = set()
    for first, second in itertools.product(parts, repeat=2):
        ids = tokenizer.encode(prefix + first + second)
        border = len(prefix) + len(first)
        for start, stop in tokenizer.spans(ids).tolist():
            text = (prefix + first + second)[start:stop]
            word = text.removeprefix(prefix) if start == 0 else text
            if start < border < stop and word in WORDS:
                found.add((first, second, word, WORDS[word], (start, stop)))
    return found


@pytest.mark.parametrize("prefix", ["", " "])
@pytest.mark.parametrize("kind", ["bpe", "path_piece"])
def test_the_search_finds_what_trying_every_pair_finds(kind, prefix):
    tokenizer = BPE if kind == "bpe" else PathPieceTokenizer.train(TEXTS, vocab_size=256 + 3 + 60)
    traps = search(tokenizer, WORDS, None, per_token=None, tries=None, prefix=prefix)
    found = {(t.first, t.second, t.word, t.score, t.span) for t in traps}
    assert len(found) == len(traps) and found == by_trying_every_pair(tokenizer, prefix)
    assert found, "the example has traps"
    assert [t.score for t in traps] == sorted((t.score for t in traps), reverse=True)
    for trap in traps:
        assert trap.text == prefix + trap.first + trap.second
        start, stop = trap.span
        assert tokenizer.token_bytes[trap.token] == trap.text.encode()[start:stop]
        alone = [*tokenizer.encode(prefix + trap.first), *tokenizer.encode(trap.second)]
        assert tokenizer.encode(trap.text).tolist() != alone


def test_limits_keep_the_best():
    every = search(BPE, WORDS, None, per_token=None, tries=None, prefix="")
    assert search(BPE, WORDS, 3, per_token=None, tries=None, prefix="") == every[:3]
    one_each = search(BPE, WORDS, None, per_token=1, tries=None, prefix="")
    assert len({t.token for t in one_each}) == len(one_each) and {t.token for t in every} == {t.token for t in one_each}
    assert [t for t in every if t.token == one_each[0].token][0] == one_each[0]
    assert set(search(BPE, WORDS, None, tries=3, prefix="")) <= set(every)


def test_bytes_have_no_traps():
    letters = {c: 1 for c in "abc"}
    assert search(ByteTokenizer(), letters, None, prefix="") == []


def test_controls_match_lengths_and_respect_borders():
    traps = search(BPE, WORDS, 8, per_token=2, prefix="")
    paired = controls(BPE, traps, WORDS, prefix="")
    assert len(paired) >= 4 and len({control[:2] for _, control in paired}) == len(paired)
    everything = {(t.first, t.second) for t in search(BPE, WORDS, None, per_token=None, tries=None, prefix="")}
    for trap, control in paired:
        assert (len(control.first), len(control.second)) == (len(trap.first), len(trap.second))
        assert (control.first, control.second) not in everything
        assert control.text == control.first + control.second
        ids = BPE.encode(control.text).tolist()
        assert ids == [*BPE.encode(control.first), *BPE.encode(control.second)]


def test_controls_are_the_nearest_by_count():
    """Words of two letters whose borders all hold: the control has the counts next to the trap's."""
    words = {"ab": 100, "cd": 100, "bc": 7, "ef": 90, "gh": 10, "ij": 95, "kl": 900}
    merges = [(ord(w[0]), ord(w[1])) for w in ("bc", "ab", "cd", "ef", "gh", "ij", "kl")]
    tokenizer = BpeTokenizer(tuple(merges))
    (trap,) = search(tokenizer, words, 1, prefix="")
    assert (trap.first, trap.second, trap.word, trap.span) == ("ab", "cd", "bc", (1, 3))
    ((_, control),) = controls(tokenizer, [trap], words, prefix="")
    assert (control.first, control.second) == ("ab", "ab")  # the same counts, and no border is crossed
    assert controls(tokenizer, [trap], {"ab": 100, "cd": 100, "bc": 7}, prefix="") == [(trap, ("ab", "ab", "abab"))]


def test_words_that_are_not_utf8():
    """Bytes as U+DC80..U+DCFF, as everywhere."""
    words = {"a\udcff": 9, "c\udcfe": 9, "\udcffc": 5}
    tokenizer = BpeTokenizer(((0xFF, ord("c")), (ord("a"), 0xFF), (ord("c"), 0xFE)))
    (trap,) = search(tokenizer, words, 1, prefix="")
    assert trap[:4] == ("a\udcff", "c\udcfe", "a\udcffc\udcfe", "\udcffc")
    ((_, control),) = controls(tokenizer, [trap], words, prefix="")
    assert control.text == control.first + control.second and len(control.text) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search(BPE, WORDS, 0), "limit must be positive or None, got 0"),
        (lambda: search(BPE, WORDS, per_token=-1), "per_token must be positive or None, got -1"),
        (lambda: search(BPE, WORDS, tries=0), "tries must be positive or None, got 0"),
        (lambda: search(BPE, {"a": 0}), "positive counts, got 'a': 0"),
        (lambda: search(BPE, {"": 1}), "positive counts, got '': 1"),
        (lambda: search(ByteTokenizer(), {"xylophone": 3}), "none of the 1 is a token of 'byte'"),
        (lambda: search(ByteTokenizer(), {}), "none of the 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
