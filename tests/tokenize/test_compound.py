"""Compounds: the rules of the pairs, cuts against brute force, lossless pre-tokens, bad input."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.compound import (
    Pair,
    decompounded,
    evaluate,
    generated,
    join_lines,
    pretokens,
    remove_hyphens,
    segment,
    split_like,
    stage_one,
    stage_two,
    word_counts,
)
from jaxlm.tokenize.unigram import UnigramTokenizer

WORDS = st.text("abcXä", min_size=1, max_size=9)


@pytest.mark.parametrize(
    ("word", "joined"),
    [
        ("well-known", "wellknown"),
        ("Wasser-Fall", "Wasserfall"),
        ("ABC-schutz", "ABCSchutz"),
        ("a\u2010b-c", "abc"),
        ("A-Straße-b", "AStraßeb"),
        ("X-ß", "Xß"),  # its capital would be two letters
        ("3-D", "3D"),
        ("plain", "plain"),
    ],
)
def test_hyphens_go_and_the_case_follows(word, joined):
    assert remove_hyphens(word) == joined


def test_the_case_stays_at_its_rate():
    rng = np.random.default_rng(0)
    kept = sum(remove_hyphens("ab-Cd", rng, 0.7) == "abCd" for _ in range(4000))
    assert abs(kept / 4000 - 0.3) < 4 * (0.21 / 4000) ** 0.5
    assert remove_hyphens("ab-Cd", rng, 0.0) == "abCd" and remove_hyphens("ab-Cd", rng, 1.0) == "abcd"


def test_divided_lines_are_joined():
    assert join_lines("a Wasser-\n  fall is\nwater -\nx") == "a Wasser-fall is\nwater -\nx"
    assert join_lines("3-\n4 pre-\n(x)") == "3-\n4 pre-\n(x)"


def test_word_counts_leave_out_what_is_no_word():
    text = "(well-known), well\u2010known! a--b x.y UTF-8 self-Made aB-c e-mail e-mail. wasser-\nfall " + "x" * 65
    assert word_counts([text]) == {"well-known": 2, "self-Made": 1, "e-mail": 2, "wasser-fall": 1}


def test_stage_one_has_as_many_plain_words_and_one_spelling():
    counts = {
        "well-known": 5, "Well-known": 2, "wellknown": 9, "out-put": 1, "output": 404, "e-mail": 50, "to-day": 3,
        "today": 7, "zebra": 1, "house": 30, "Wellknown": 1, "tree": 20, "sea-side": 1,
    }  # fmt: skip
    # out-put is e^6 = 403 times rarer than output, e-mail has a part of one character, wellknown has a hyphenated form.
    assert stage_one(counts) == [
        Pair("wellknown", "well-known"),
        Pair("today", "to-day"),
        Pair("seaside", "sea-side"),
        Pair("output", "output"),
        Pair("house", "house"),
        Pair("tree", "tree"),
    ]
    assert Pair("output", "out-put") in stage_one({**counts, "output": 403})


def test_stage_two_keeps_parts_whole():
    pairs = stage_two({"Arbeitszimmer": ["Arbeit", "Zimmer"], "Zimmer": ["Zimmer"], "Tischbein": ["Tisch", "Bein"]})
    assert pairs == [
        ("Arbeitszimmer", "Arbeit-Zimmer"),
        ("Zimmer", "Zimmer"),
        ("Tischbein", "Tisch-Bein"),
        ("Arbeit", "Arbeit"),
        ("Tisch", "Tisch"),
        ("Bein", "Bein"),
    ]


def distance(a, b):
    """Levenshtein's, by its recursion."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return distance(a[1:], b[1:])
    return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))


@given(st.text("abA", min_size=1, max_size=6), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3))
def test_cuts_are_the_nearest_of_all(word, parts):
    if len(parts) > len(word):
        return
    best = min(
        (sum(distance(word[i:j].lower(), p) for (i, j), p in zip(itertools.pairwise(ends), parts, strict=True)),
         [-end for end in ends])
        for inner in itertools.combinations(range(1, len(word)), len(parts) - 1)
        for ends in [[0, *inner, len(word)]]
    )  # fmt: skip
    ends = [-end for end in best[1]]
    assert split_like(word, parts) == [word[i:j] for i, j in itertools.pairwise(ends)]


def test_linking_letters_stay_with_what_they_follow():
    assert split_like("Arbeitszimmer", ["Arbeit", "Zimmer"]) == ["Arbeits", "zimmer"]
    rng = np.random.default_rng(1)
    words = [word for word in generated(rng, 300) if len(word.parts) > 1]
    right = sum(tuple(split_like(word.word, word.parts)) == word.pieces for word in words)
    assert len(words) > 100 and right >= 0.9 * len(words)  # a link may look like the next stem's beginning


def test_generated_words_are_their_pieces():
    words = generated(np.random.default_rng(0), 200)
    assert words == generated(np.random.default_rng(0), 200)
    assert all("".join(w.pieces) == w.word and len(w.pieces) == len(w.parts) for w in words)
    assert all(p.startswith(s) for w in words for p, s in zip(w.pieces, w.parts, strict=True))
    assert {len(w.parts) for w in words} == {1, 2, 3}


def test_scores_by_hand():
    references = [["ab", "c"], ["abc"], ["a", "b", "c"]]
    score = evaluate([["ab", "c"], ["a", "bc"], ["a", "bc"]], references)
    assert score == (1 / 3, 2 / 3, 2 / 3, 2 / 3)
    assert evaluate(references, references) == (1, 1, 1, 1)
    assert evaluate([["abc"]], [["abc"]]) == (1, 1, 1, 1) and evaluate([["abc"]], [["a", "bc"]])[1:] == (1, 0, 0)


def halves(word):
    return [word[: len(word) // 2], word[len(word) // 2 :]]


@given(st.text())
def test_pretokens_join_to_the_text(text):
    assert "".join(segment(text)) == text
    assert "".join(pretokens(text, halves)) == text
    assert "".join(pretokens(text, list)) == text


def test_what_is_cut():
    assert segment("a  well-known (x)\n") == ["a", "  well", "-", "known", " (", "x", ")", "\n"]
    assert pretokens("big seaside, 1984 a", halves) == ["b", "ig", " sea", "side", ",", " 1984", " a"]
    assert pretokens("seaside", lambda word: ["other"]) == ["seaside"]  # not its pieces
    assert pretokens("x" * 32 + " " + "y" * 4, halves) == ["x" * 32, " yy", "yy"]
    counts = decompounded(["sea side seaside", "seaside"], lambda w: ["sea", "side"] if w == "seaside" else [w])
    assert counts == {"sea": 2, " side": 1, " sea": 1, "side": 2}
    assert decompounded(["aa bb aa", " bb"], halves, min_count=2) == {" b": 2, "b": 2}
    assert decompounded(["a\udcffbc"], halves) == {"a\udcff": 1, "bc": 1}  # bytes that are not UTF-8


def test_a_vocabulary_of_parts_cuts_compounds_where_they_join():
    """The use of it: unigram vocabularies of the same size, trained on words and on their pieces."""
    words = generated(np.random.default_rng(0), 3000)
    pieces = {word.word: word.pieces for word in words}
    texts = [" ".join(word.word for word in words)]
    parts = decompounded(texts, lambda word: pieces.get(word, [word]))
    found = []
    for data in (texts, parts.elements()):
        tokenizer = UnigramTokenizer.train(data, vocab_size=256 + 3 + 150)
        tokens = [[tokenizer.decode([i]).strip() for i in tokenizer.encode(f" {word}")] for word in pieces]
        found.append(evaluate([list(filter(None, some)) for some in tokens], list(pieces.values())).recall)
    assert found[0] < 0.7 and found[1] > 0.95


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_a_perfect_decompounder_undoes_stage_one(parts):
    word = "-".join(parts)
    joined = remove_hyphens(word)
    assert joined.lower() == "".join(parts).lower()
    assert split_like(joined, parts) and "".join(split_like(joined, parts)) == joined


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remove_hyphens("-a"), "'-a': hyphens must stand between characters"),
        (lambda: remove_hyphens("a--b"), "hyphens must stand between"),
        (lambda: stage_one({"plain": 3, "e-mail": 2}), "no hyphenated word"),
        (lambda: stage_two({"ab": ["a-b"]}), "'ab': expected parts without hyphens"),
        (lambda: stage_two({"ab": []}), "'ab': expected parts"),
        (lambda: split_like("ab", ["a", "b", "c"]), "'ab' cannot be cut into 3 pieces"),
        (lambda: split_like("ab", []), "into 0 pieces"),
        (lambda: evaluate([], []), "as many predictions as words"),
        (lambda: evaluate([["a"]], [["a"], ["b"]]), "as many predictions"),
        (lambda: evaluate([["a", "c"]], [["ab"]]), "do not spell 'ab'"),
        (lambda: decompounded(["a"], halves, min_count=0), "min_count: expected at least 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
