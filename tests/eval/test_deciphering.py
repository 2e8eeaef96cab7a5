"""Deciphering: a map that is there is found, one that is not there is not, and ridge regression by its definition."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.eval.deciphering import Decipherer, accuracy

DRAWS = np.random.default_rng(0)
EMBEDDINGS = DRAWS.standard_normal((20, 6))
LETTERS = DRAWS.integers(0, 20, 3000)
MAP = DRAWS.standard_normal((6, 12))
HIDDEN = EMBEDDINGS[LETTERS] @ MAP + 0.05 * DRAWS.standard_normal((3000, 12)) + 3.0


def test_a_linear_code_is_read():
    probe = Decipherer.fit(HIDDEN[:2000], LETTERS[:2000], EMBEDDINGS)
    np.testing.assert_array_equal(probe(HIDDEN[2000:].reshape(10, 100, 12)), LETTERS[2000:].reshape(10, 100))


def test_what_is_not_there_is_not_found():
    """Letters that have nothing to do with the states, on states that were not fitted: as often right as by chance."""
    other = DRAWS.permutation(LETTERS)
    found = Decipherer.fit(HIDDEN[:2000], other[:2000], EMBEDDINGS)(HIDDEN[2000:])
    assert abs((found == other[2000:]).mean() - 1 / 20) < 5 * (0.05 * 0.95 / 1000) ** 0.5


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.7])
def test_ridge_regression_by_its_normal_equations(ridge):
    """As least squares with sqrt(penalty) I as further rows; with columns that say the same twice, too."""
    probe = Decipherer.fit(HIDDEN, LETTERS, EMBEDDINGS, ridge)
    centred, wanted = HIDDEN - HIDDEN.mean(0), EMBEDDINGS[LETTERS] - EMBEDDINGS[LETTERS].mean(0)
    penalty = ridge * (centred**2).sum() / 12
    rows = np.concatenate([centred, np.sqrt(penalty) * np.eye(12)])
    kernel = np.linalg.lstsq(rows, np.concatenate([wanted, np.zeros((12, 6))]), rcond=None)[0]
    np.testing.assert_allclose(probe.kernel, kernel, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(HIDDEN.mean(0) @ probe.kernel + probe.offset, EMBEDDINGS[LETTERS].mean(0))
    doubled = np.concatenate([HIDDEN, HIDDEN], 1)
    np.testing.assert_array_equal(Decipherer.fit(doubled, LETTERS, EMBEDDINGS)(doubled[:50]), LETTERS[:50])


def test_the_nearest_by_distance(monkeypatch):
    monkeypatch.setattr("jaxlm.eval.deciphering.ROWS", 7)
    probe = Decipherer(MAP.T @ MAP @ MAP.T, DRAWS.standard_normal(6), EMBEDDINGS)
    at = HIDDEN[:40] @ probe.kernel + probe.offset
    wanted = np.square(at[:, None] - EMBEDDINGS).sum(-1).argmin(1)
    np.testing.assert_array_equal(probe(HIDDEN[:40]), wanted)


def test_accuracy():
    letters = np.arange(12).reshape(2, 6)
    found = letters.copy()
    found[0, 4], found[1, 1] = 0, 0
    assert accuracy(found, letters, 0, 6) == 10 / 12 and accuracy(found, letters, 2, 4) == 1.0
    assert accuracy(found, letters, 4, 5) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Decipherer.fit(HIDDEN, LETTERS[1:], EMBEDDINGS), r"\[2999\] letters for 3000 hidden states"),
        (lambda: Decipherer.fit(HIDDEN[0], LETTERS, EMBEDDINGS), r"expected \[N, D\] and \[V, W\]"),
        (lambda: Decipherer.fit(HIDDEN, LETTERS + 1, EMBEDDINGS), r"letter \[20\] is not one of 0..19"),
        (lambda: Decipherer.fit(HIDDEN, LETTERS, EMBEDDINGS, -1), "expected a ridge >= 0, got -1"),
        (lambda: accuracy([[1]], [1], 0, 1), r"expected two \[B, L\]"),
        (lambda: accuracy([[1]], [[1]], 0, 2), "0..2 is not within 1 positions"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
