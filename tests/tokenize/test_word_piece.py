"""WordPiece: training against recounting after every step, encoding against the library tokenizers."""

import collections
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.word_piece import FORMS, RULES, WordPieceTokenizer

TEXTS = [
    "the cat and the other cat sat on that mat, then the hat",
    "that theatre é at the other end",
    "é banana bandana aé é",
] * 2


def slow_training(texts, steps, form, rule, least):
    """Symbols (text, goes on) joined one pair at a time, everything counted anew."""
    words = collections.Counter()
    for text in texts:
        first, *others = text.split(" ")
        words.update([first, *(" " + other for other in others)])
    state = {word: [(c, form == "bert" and i > 0) for i, c in enumerate(word)] for word in words}
    order = {}
    for word in words:
        for symbol in state[word]:
            order.setdefault(symbol, len(order))
    found = [symbol for symbol in order if len(symbol[0].encode()) > 1]
    n_log_n = lambda count: count * math.log(max(count, 1))
    while len(found) < steps:
        singles, pairs = collections.Counter(), collections.Counter()
        for word, weight in words.items():
            for symbol in state[word]:
                singles[symbol] += weight
            for pair in itertools.pairwise(state[word]):
                pairs[pair] += weight
        total = singles.total()

        def score(pair, singles=singles, pairs=pairs, total=total):
            (left, right), count = pair, pairs[pair]
            if rule == "count":
                return count
            if rule == "ratio":
                return count / (singles[left] * singles[right])
            count = min(count, singles[left] // 2) if left == right else count
            after = singles.copy()
            after[left] -= count
            after[right] -= count
            value = n_log_n(count) + sum(n_log_n(after[s]) - n_log_n(singles[s]) for s in {left, right})
            return value + n_log_n(total) - n_log_n(total - count)

        rank = lambda pair, score=score, pairs=pairs: (
            round(score(pair), 9),
            pairs[pair],
            -order[pair[0]],
            -order[pair[1]],
        )
        best = max((pair for pair in pairs if pairs[pair] >= least), key=rank, default=None)
        if best is None:
            break
        new = best[0][0] + best[1][0], best[0][1]
        if new not in order:
            order[new] = len(order)
            found.append(new)
        for word, symbols in state.items():
            joined, at = [], 0
            while at < len(symbols):
                if tuple(symbols[at : at + 2]) == best:
                    joined.append(new)
                    at += 2
                else:
                    joined.append(symbols[at])
                    at += 1
            state[word] = joined
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_training(form, rule):
    for least in (1, 2):
        expected = slow_training(TEXTS, 25, form, rule, least)
        assert len(expected) == 25
        found = WordPieceTokenizer.train(TEXTS, 256 + 3 + 25, form=form, rule=rule, least=least, coverage=1.0)
        assert list(found.pieces) == [text for text, goes_on in expected if not goes_on]
        assert list(found.continuations) == [text for text, goes_on in expected if goes_on]
        assert found.vocab_size == 284 and (form == "bert") == bool(found.continuations)


def test_what_the_rules_prefer():
    """A pair that is never apart, though rare; a common one; and the one that says most about the text."""
    texts = ["qu " + "ab ac ad bb cb " * 9]
    first = lambda rule: WordPieceTokenizer.train(texts, 260, rule=rule, least=1).pieces[0]
    assert first("ratio") == "qu" and first("count") == " a" and first("likelihood") == " a"


WORDS = st.lists(st.sampled_from([*" ".join(TEXTS).split(" "), "thethat", "xat", "é"])).map(" ".join)


@pytest.mark.parametrize("form", FORMS)
@given(text=WORDS)
def test_the_library_cuts_the_same(form, text):
    tokenizers = pytest.importorskip("tokenizers")
    ours = TRAINED[form]
    alphabet = sorted({*"".join(TEXTS), "x"})
    if form == "bert":
        vocabulary = [*alphabet, *(f"##{c}" for c in alphabet), *ours.pieces, *(f"##{c}" for c in ours.continuations)]
        split = tokenizers.pre_tokenizers.Split(" ", "merged_with_next")
        mark = "##"
    else:  # one list of pieces, and so no mark before those that go on
        vocabulary, mark = [*alphabet, *ours.pieces], ""
        split = tokenizers.pre_tokenizers.Split(" ", "merged_with_next")
    table = {piece: i for i, piece in enumerate(dict.fromkeys(["[UNK]", *vocabulary]))}
    model = tokenizers.models.WordPiece(
        vocab=table, unk_token="[UNK]", continuing_subword_prefix=mark, max_input_chars_per_word=1000
    )
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = split
    found = [ours.token_bytes[i].decode("utf-8", "surrogateescape") for i in ours.encode(text)]
    theirs = [t.removeprefix("##") if form == "bert" else t for t in library.encode(text).tokens]
    assert found == theirs


TRAINED = {form: WordPieceTokenizer.train(TEXTS, 290, form=form, rule="count", coverage=1.0) for form in FORMS}


def test_the_two_forms():
    bert = WordPieceTokenizer(("the", " the"), form="bert", continuations=("the", "re"))
    assert bert.encode("thethere the").tolist() == [256, 258, 259, 257]
    assert bert.encode("xthere").tolist() == [ord("x"), 258, 259]  # a byte begins the word, and the word goes on
    gnmt = WordPieceTokenizer(("the", " the", "re"))
    assert gnmt.encode("thethere the").tolist() == [256, 256, 258, 257]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WordPieceTokenizer.train(TEXTS, 5000), "vocab_size can be at most"),
        (lambda: WordPieceTokenizer.train(["éßøåñ"] * 2, 262), "room for 3 pieces and the texts have 5 characters"),
        (lambda: WordPieceTokenizer.train(TEXTS), "needs a vocab_size"),
        (lambda: WordPieceTokenizer.train(TEXTS, 300, rule="bpe"), "unknown rule of WordPiece 'bpe'"),
        (lambda: WordPieceTokenizer.train(TEXTS, 300, form="brt"), "did you mean 'bert'"),
        (lambda: WordPieceTokenizer.train(TEXTS, 300, least=0), "least must be positive"),
        (lambda: WordPieceTokenizer(form="x"), "unknown WordPieceTokenizer.form 'x'"),
        (lambda: WordPieceTokenizer(continuations=("ab",)), "only the form 'bert' has them"),
        (lambda: WordPieceTokenizer(form="bert", continuations=("ab", "ab")), "continuations: repeated"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
