"""PathPiece against every segmentation of short texts, against BPE, and its training against the slow estimate."""

import collections
import itertools
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import as_text
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.path_piece import PathPieceTokenizer, fewest, increases
from jaxlm.tokenize.substrings import Substrings
from jaxlm.tokenize.trie import Trie

TEXTS = ["the cat and the other cat sat on that mat, then the hat", "that theatre at the other end", "banana bandana"]


def segmentations(text, pieces):
    """All ways to cut ``text`` into ``pieces``."""
    if not text:
        return [[]]
    return [
        [text[:n], *rest]
        for n in range(1, len(text) + 1)
        if text[:n] in pieces
        for rest in segmentations(text[n:], pieces)
    ]


pieces_of = st.sets(st.text("ab", min_size=2, max_size=4), max_size=8).map(sorted)


@given(pieces_of, st.text("ab", max_size=9))
def test_fewest_and_longest_last(pieces, text):
    tokenizer = PathPieceTokenizer(tuple(pieces), split=())
    found = [tokenizer.token_bytes[i].decode() for i in tokenizer.encode(text)]
    every = segmentations(text, {"a", "b", *pieces})
    least = min(map(len, every))
    # Longest last token, then the longest before it, and so on.
    best = max((way for way in every if len(way) == least), key=lambda way: [len(piece) for piece in reversed(way)])
    assert found == best


def test_random_ties():
    tokenizer = PathPieceTokenizer(("ab", "ba", "bab", "aba"), split=())
    every = segmentations("abababab", {"a", "b", *tokenizer.pieces})
    shortest = {tuple(way) for way in every if len(way) == min(map(len, every))}
    rng = np.random.default_rng(0)
    draws = [tuple(tokenizer.token_bytes[i].decode() for i in tokenizer.sample("abababab", rng)) for _ in range(400)]
    assert len(shortest) > 1 and set(draws) == shortest
    last = collections.Counter(draw[-1] for draw in draws)
    expected = 400 / len({way[-1] for way in shortest})  # uniform over the widths that are tied at the end
    assert all(abs(count - expected) < 4 * expected**0.5 for count in last.values())


BPE = BpeTokenizer.train(TEXTS, 290)
SAME = PathPieceTokenizer(tuple(dict.fromkeys(as_text(piece) for piece in BPE.token_bytes[256:] if piece)))


@given(st.lists(st.sampled_from(" ".join(TEXTS).split(" ")), min_size=1).map(" ".join))
def test_never_more_tokens_than_bpe(text):
    assert len(SAME.encode(text)) <= len(BPE.encode(text))
    assert len(SAME.sample(text, np.random.default_rng(0))) == len(SAME.encode(text))


def test_prose():
    """Fewer tokens than BPE with the same vocabulary in some sentences, fewer still with a vocabulary of its own."""
    sentences = [part for name in sorted(topics) for part in topics[name].split(".")][:600]
    bpe = BpeTokenizer.train(sentences, 1000)
    same = PathPieceTokenizer(tuple(dict.fromkeys(as_text(piece) for piece in bpe.token_bytes[256:] if piece)))
    own = PathPieceTokenizer.train(sentences, 1000)
    tokens = lambda t: np.array([len(t.encode(sentence)) for sentence in sentences])
    saved = tokens(bpe) - tokens(same)
    assert min(saved) >= 0 and np.mean(saved > 0) > 0.05
    assert tokens(own).sum() < tokens(same).sum()


def slow_increases(words, active):
    """The paper's estimate from all shortest paths that begin and end at every place."""
    cost = collections.Counter()
    for word, weight in words.items():
        n = len(word)
        spans = [(s, e) for s, e in itertools.combinations(range(n + 1), 2) if word[s:e] in active]
        before, behind = [0] + [99] * n, [99] * n + [0]
        back = [0] * (n + 1)
        for s, e in sorted(spans, key=lambda span: (span[1], -span[0])):  # the widest comes last
            if before[s] + 1 <= before[e]:
                before[e], back[e] = before[s] + 1, s
        for s, e in sorted(spans, key=lambda span: -span[0]):
            behind[s] = min(behind[s], behind[e] + 1)
        e = n
        while e:
            s = back[e]
            if e - s > 1:
                inner = [before[b] + behind[b] for b in range(s + 1, e)]
                wider = [before[i] + 1 + behind[j] for i, j in spans if i <= s and e <= j and (i, j) != (s, e)]
                cost[word[s:e]] += weight * (min(inner + wider) - before[n])
            e = s
    return cost


@given(
    st.dictionaries(st.text("ab", min_size=1, max_size=8).map(str.encode), st.integers(1, 3), min_size=1, max_size=5),
    st.integers(2, 5),
    st.data(),
)
def test_increases(words, most, data):
    lattice = Substrings(words, most, least=1)
    chosen = [len(piece) == 1 or data.draw(st.booleans()) for piece in lattice.pieces]
    active = np.array([*chosen, False])
    expected = slow_increases(words, {piece for piece, alive in zip(lattice.pieces, chosen, strict=True) if alive})
    found = dict(zip(lattice.pieces, increases(lattice, active).tolist(), strict=True))
    assert {piece: cost for piece, cost in found.items() if cost} == {p: c for p, c in expected.items() if c}


def test_training():
    for size in (260, 275, 295):
        tokenizer = PathPieceTokenizer.train(TEXTS, size, keep=0.9)
        assert tokenizer.vocab_size == size and all(2 <= len(piece) <= 16 for piece in tokenizer.pieces)
    assert PathPieceTokenizer.train(["abab abab"], 257, specials=(), split=()).token_bytes[256] == b"abab"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PathPieceTokenizer.train(TEXTS, 5000), "vocab_size can be at most"),
        (lambda: PathPieceTokenizer.train(TEXTS, 10), "must be at least 260"),
        (lambda: PathPieceTokenizer.train(TEXTS), "needs a vocab_size"),
        (lambda: PathPieceTokenizer.train(TEXTS, 300, keep=1.0), "keep must be between 0 and 1"),
        (lambda: PathPieceTokenizer.train(TEXTS, 300, max_length=1), "max_length must be 2 or more"),
        (lambda: PathPieceTokenizer(split=("spaces",)), "unknown splitting rule 'spaces'"),
        (lambda: fewest(Trie([(b"a", 0)]), b"aab"), "no way to spell b'aab'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
