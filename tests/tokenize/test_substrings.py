"""Tries and lattices of substrings against the obvious loops, and what lists of pieces refuse."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.dictionary import DictionaryTokenizer
from jaxlm.tokenize.pieces import covered, room_for_pieces
from jaxlm.tokenize.pretokens import word_counts
from jaxlm.tokenize.substrings import Substrings
from jaxlm.tokenize.trie import Trie

some_bytes = st.lists(st.sampled_from(b"abc\xff"), min_size=1, max_size=6).map(bytes)


@given(st.lists(some_bytes, max_size=12), some_bytes, st.integers(0, 6))
def test_trie(pieces, data, start):
    table = {piece: 300 + i for i, piece in enumerate(pieces)}  # of equal pieces the later id
    trie = Trie((piece, 300 + i) for i, piece in enumerate(pieces))
    found = [(table[data[start:end]], end) for end in range(start + 1, len(data) + 1) if data[start:end] in table]
    assert trie.matches(data, start) == found
    assert trie.longest(data, start) == (found[-1] if found else (-1, start))
    ids, at = [], 0
    while at < len(data):
        end = max((e for e in range(at + 1, len(data) + 1) if data[at:e] in table), default=at + 1)
        ids.append(table.get(data[at:end], data[at]))
        at = end
    assert trie.greedy(data) == ids


words = st.dictionaries(st.text("abcé🦊", min_size=1, max_size=9), st.integers(1, 4), max_size=8)


@given(words, st.booleans(), st.integers(1, 4), st.integers(1, 3), st.integers(2, 9))
def test_substrings(words, as_bytes, most, least, longest):
    given_words = {word.encode(): n for word, n in words.items()} if as_bytes else words
    lattice = Substrings(given_words, most, least, longest)
    parts = collections.Counter()
    for word, weight in given_words.items():
        for at in range(0, len(word), longest):
            parts[word[at : at + longest]] += weight
    counts = collections.Counter()
    for word, weight in parts.items():
        for end in range(1, len(word) + 1):
            for k in range(1, min(most, end) + 1):
                counts[word[end - k : end]] += weight
    expected = {piece: count for piece, count in counts.items() if count >= least or len(piece) == 1}
    assert dict(zip(lattice.pieces, lattice.counts.tolist(), strict=True)) == expected
    assert [len(piece) for piece in lattice.pieces] == lattice.lengths.tolist() == sorted(lattice.lengths)

    # Every substring ends where the nodes of its word say so.
    spelt = {int(w): b"" if as_bytes else "" for w in range(len(lattice.weights))}
    for node in range(lattice.ids.shape[1]):
        word, layer = int(lattice.word_of[node]), int(lattice.layer_of[node])
        if layer:
            spelt[word] += lattice.pieces[lattice.ids[0, node]]
            assert lattice.next[lattice.previous[node]] == node
        for k in range(1, most + 1):
            found = lattice.ids[k - 1, node]
            own = spelt[word][layer - k :] if k <= layer else None
            assert lattice.pieces[found] == own if found >= 0 else own not in expected
    assert collections.Counter({spelt[w]: n for w, n in enumerate(lattice.weights.tolist())}) == parts
    for i, node in enumerate(lattice.places):
        assert lattice.ids[lattice.lengths[i] - 1, node] == i
        start = lattice.start(np.array([node]), lattice.lengths[[i]])[0]
        assert lattice.layer_of[start] == lattice.layer_of[node] - lattice.lengths[i]


def test_words_over_frequent_characters():
    counts = word_counts(["éé né", b"a\xffb \xc5\xbe"], ("space",))
    assert counts == {"éé".encode(): 1, " né".encode(): 1, b"a\xffb": 1, " ž".encode(): 1}
    words, characters = covered(counts, 1.0)
    assert words == {"éé": 1, " né": 1, "a": 1, "b": 1, " ž": 1} and characters == ["é", "ž"]
    words, characters = covered(counts, 0.85)  # ž is one of 9 characters
    assert words == {"éé": 1, " né": 1, "a": 1, "b": 1, " ": 1} and characters == ["é"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DictionaryTokenizer(("ab", "ab")), "DictionaryTokenizer.pieces: repeated: 'ab'"),
        (lambda: DictionaryTokenizer(("a",)), "'a' has fewer than two bytes"),
        (lambda: DictionaryTokenizer(("",)), "fewer than two bytes"),
        (lambda: DictionaryTokenizer(("\ud800a",)), "lone surrogate"),
        (lambda: DictionaryTokenizer(("ab",), ("<a>", "<a>")), "DictionaryTokenizer.specials: repeated"),
        (lambda: room_for_pieces("x", None), "training a 'x' tokenizer needs a vocab_size"),
        (lambda: room_for_pieces("x", 259), "must be at least 260 \\(256 bytes, 3 specials, one piece\\), got 259"),
        (lambda: covered({}, 0.0), "coverage"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
