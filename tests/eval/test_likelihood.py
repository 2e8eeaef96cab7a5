"""Log-likelihoods against the plain softmax of a full pass, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.eval import likelihood
from jaxlm.eval.likelihood import bucket, loglikelihoods, rolling_windows
from tests.tiny import VOCABULARY, params_of, tiny

SPEC = tiny(mixer={"position": {"name": "learned", "args": {"size": 40}}}, repeats=1)
MODEL, PARAMS = jaxlm.LanguageModel(SPEC), params_of(SPEC)
LENGTHS, COUNTS = [5, 2, 30, 17, 41, 18, 3, 9], [2, 1, 29, 3, 40, 17, 0, 4]
ROWS = [np.random.default_rng(i).integers(0, VOCABULARY, n) for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def direct():
    """(log-probabilities, greedy) of the last tokens of one row, from all its logits; behind it any tokens."""
    logits_of = jax.jit(lambda tokens: MODEL.apply({"params": PARAMS}, tokens).logits)

    def one(row, count):
        inputs = np.concatenate([row[:-1], np.full(41 - len(row), 5)])
        logits = logits_of(inputs[None])[0, len(row) - 1 - count : len(row) - 1]
        targets = row[len(row) - count :]
        return np.asarray(jax.nn.log_softmax(logits))[np.arange(count), targets], np.argmax(logits, -1) == targets

    return one


@pytest.fixture(scope="module")
def scores():
    return loglikelihoods(MODEL, PARAMS, ROWS, COUNTS, batch_size=2)


def test_equals_the_softmax_of_a_full_pass(scores, direct):
    for row, count, score in zip(ROWS, COUNTS, scores, strict=True):
        logprobs, greedy = direct(row, count)
        np.testing.assert_allclose(score.logprobs, logprobs, atol=1e-5)
        np.testing.assert_array_equal(score.greedy, greedy)
        assert score.total == pytest.approx(logprobs.sum(), abs=1e-4)
    assert any(score.greedy.any() for score in scores) and not all(score.greedy.all() for score in scores[:3])


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 2, "piece": 2 * VOCABULARY * 3}])
def test_batches_order_and_pieces_do_not_matter(scores, options):
    order = np.random.default_rng(0).permutation(len(ROWS))
    again = loglikelihoods(MODEL, PARAMS, [ROWS[i] for i in order], [COUNTS[i] for i in order], **options)
    for i, score in zip(order, again, strict=True):
        np.testing.assert_allclose(score.logprobs, scores[i].logprobs, atol=1e-5)
        np.testing.assert_array_equal(score.greedy, scores[i].greedy)


def test_few_shapes_are_compiled(monkeypatch):
    shapes = set()
    real = likelihood._run

    def spy(spec, params, rows, counts, shape, *rest):
        shapes.add(shape)
        return real(spec, params, rows, counts, shape, *rest)

    monkeypatch.setattr(likelihood, "_run", spy)
    rows = [np.ones(n, int) for n in range(2, 42)]
    loglikelihoods(MODEL, PARAMS, rows, [1] * len(rows), batch_size=8)
    assert shapes == {(16, 1), (32, 1), (40, 1)}  # powers of two up to what the model can represent


def test_a_large_vocabulary_never_makes_all_logits():
    """The compiled program holds one piece of logits, not [B, L, V]."""
    spec = tiny(repeats=1, vocab_size=4096)
    shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.int32)
    params = jax.eval_shape(lambda: params_of(spec))
    arguments = (params, shape(4, 64), shape(4), shape(4, 64), shape(4, 64))
    whole, pieces = (
        likelihood._score.lower(spec, columns, *arguments).compile().memory_analysis().temp_size_in_bytes
        for columns in (64, 4)
    )
    logits = 4 * 64 * 4096 * 4
    assert pieces < logits / 4 < whole


def test_buckets():
    assert [bucket(n, None) for n in (1, 16, 17, 33)] == [16, 16, 32, 64]
    assert bucket(33, 40) == 40 and [bucket(n, 40, 1) for n in (1, 2, 3)] == [1, 2, 4]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 13])
def test_rolling_windows(length):
    """Every token once, in order, after as much of its text as fits."""
    tokens, most = list(range(100, 100 + length)), 4
    windows = list(rolling_windows(tokens, 7, most))
    assert [token for row, count in windows for token in row[-count:]] == tokens
    text = [7, *tokens]
    for row, count in windows:
        assert 1 <= count <= most and len(row) - 1 <= most
        assert any(text[i : i + len(row)] == row for i in range(len(text)))
    assert all(len(row) == most + 1 for row, _ in windows[1:])


@pytest.mark.parametrize(
    ("rows", "counts", "message"),
    [
        ([[1, 2]], [2], "row 0: 2 of its 2 tokens cannot be scored; the first is only read"),
        ([[1, 2], [1]], [1, -1], "row 1: -1 of its 1"),
        ([[1, 13]], [1], r"row 0: token \[13\] is outside the vocabulary of 13"),
        ([[1.0, 2.0]], [1], r"row 0: expected integers of shape \[n\], got float64 \[2\]"),
        ([[1] * 42], [1], "row 0: 41 tokens are fed; the model's position encoding can represent 40"),
        ([[1, 2]], [], "1 rows and 0 counts"),
    ],
)
def test_bad_input(rows, counts, message):
    with pytest.raises(ConfigError, match=message) as error:
        loglikelihoods(MODEL, PARAMS, rows, counts)
    assert "\n" not in str(error.value)
