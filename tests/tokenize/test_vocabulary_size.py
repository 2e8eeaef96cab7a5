"""Laws for the size of a vocabulary: their definitions, minima by brute force, coefficients found again, bad input."""

import math

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.vocabulary_size import (
    Law,
    Points,
    by_derivative,
    by_isoflops,
    derivative_root,
    embedding_size,
    fit,
    flops,
    flops_for,
    tokens_per_char,
    unigram_normalised_loss,
)

# The paper's sizes with vocabularies from 512 on: from its 4 k on, 1 % of noise leaves a2 uncertain by 0.035.
SIZES, VOCABULARIES, CHECKPOINTS = (33e6, 85e6, 151e6, 302e6, 631e6, 1130e6), np.geomspace(512, 96256, 10), 5


def grid():
    """N, V, d and D up to 26 tokens a parameter, [4, n]."""
    rows = [
        (n, v, embedding_size(n), d)
        for n in SIZES
        for v in VOCABULARIES
        for d in np.geomspace(1.3, 26, CHECKPOINTS) * n
    ]
    return np.array(rows).T


def test_tokens_per_char_falls_until_its_cap():
    sizes = np.geomspace(1000, 200_000, 50)
    values = tokens_per_char(sizes)
    assert (np.diff(values) < 0).all() and values.shape == (50,)
    assert tokens_per_char(10**6) == tokens_per_char(200_000)


def test_compute_has_both_kinds_of_parameters():
    assert flops(1000, 512, 4, 10) == pytest.approx(6 * (1000 + 2048) * 10 * tokens_per_char(512))
    assert math.log(flops_for(7e9)) * 0.5 - 2.4846510161625193 == pytest.approx(math.log(7e9))


def test_vocabularies_grow_more_slowly_than_models():
    """Both exponents are below 1 and nearly equal."""
    iso = math.log(by_isoflops(flops_for(2e9)) / by_isoflops(flops_for(1e9)), 2)
    assert iso == pytest.approx(0.833, abs=1e-3) and math.log(by_derivative(2e9) / by_derivative(1e9), 2) < 1
    assert by_derivative(1e6, 0.5, known=(4e6, 100.0)) == 50


@pytest.mark.parametrize(("n", "width"), [(1e5, 64), (4e5, 128), (33e6, None), (1.13e9, None), (3e8, 512)])
def test_the_root_of_the_derivative_has_the_fewest_operations(n, width):
    root, d = derivative_root(n, width), width or embedding_size(n)
    sizes = np.geomspace(root / 4, min(root * 4, 200_000), 100_001)
    assert sizes[flops(n, sizes, d, 1.0).argmin()] == pytest.approx(root, rel=1e-4)


def test_the_roots_of_the_authors_sizes_have_their_exponent():
    roots = [embedding_size(n) * derivative_root(n) for n in SIZES]
    assert np.polyfit(np.log(SIZES), np.log(roots), 1)[0] == pytest.approx(0.8353974, abs=0.03)
    assert derivative_root(1e13, 16) == pytest.approx(200_000)


@pytest.mark.parametrize("law", [Law(), Law(e=2.0, a1=1.0, a2=0.5, b=3.0, alpha2=0.3, beta=0.7)])
@pytest.mark.parametrize(("n", "width", "budget"), [(33e6, 512, 1e17), (3e9, 3200, 1e21), (1e6, 64, 1e13)])
def test_the_best_vocabulary_has_the_least_loss(law, n, width, budget):
    best = law.best_vocab(n, width, budget)
    around = np.exp(np.linspace(math.log(best) - 2, math.log(best) + 2, 4001))  # best is the middle
    losses = law.loss(n, around, width, budget / (6 * (n + around * width)))
    assert abs(int(np.argmin(losses)) - 2000) <= 1


def test_more_compute_deserves_more_tokens():
    sizes = [Law().best_vocab(302e6, budget=k * flops_for(302e6)) for k in (0.2, 1, 5)]
    assert sizes == sorted(sizes)


def test_unigram_normalised_loss_of_a_unigram_model_is_zero():
    counts, ids = [10, 30, 60, 0], [0, 1, 1, 2]
    nats = -np.log(np.array([0.1, 0.3, 0.3, 0.6]))
    assert unigram_normalised_loss(nats, ids, counts) == pytest.approx(0)
    assert unigram_normalised_loss(nats - 0.5, ids, counts) == pytest.approx(-0.5)


def test_a_fit_without_noise_is_exact():
    pytest.importorskip("scipy")
    x = grid()[:, ::3]
    law = Law(e=4.0, a1=1.5, a2=0.4, b=1.8, alpha2=0.5, beta=0.35)
    found = fit(Points(*x, law.loss(*x)))
    for name in ("e", "a1", "a2", "b", "alpha2", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-3), name


@pytest.mark.parametrize("seed", range(2))
def test_exponents_are_found_again_from_noisy_points(seed):
    """The recipe of the paper's fit: published coefficients, 1 % of noise, exponents within 0.03."""
    pytest.importorskip("scipy")
    x = grid()
    noise = 1 + 0.01 * np.random.default_rng(seed).standard_normal(x.shape[1])
    found = fit(Points(*x, Law().loss(*x) * noise))
    assert found.alpha2 == pytest.approx(Law().alpha2, abs=0.03)
    assert found.beta == pytest.approx(Law().beta, abs=0.03)


def test_outliers_do_not_move_a_fit():
    """Huber's loss: a tenth of the points is off by a nat, and the exponents stay."""
    pytest.importorskip("scipy")
    x = grid()
    loss = Law().loss(*x)
    loss[::10] += 1.0
    found = fit(Points(*x, loss))
    assert found.alpha2 == pytest.approx(Law().alpha2, abs=1e-2)
    assert found.beta == pytest.approx(Law().beta, abs=1e-2)


SIX = Points(*grid()[:, :100:9], np.linspace(-4, -3, 12))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokens_per_char(0), "expected positive sizes, got 0"),
        (lambda: embedding_size(-1), "non_vocab_params: expected a positive number, got -1"),
        (lambda: by_isoflops(0), "expected positive FLOPs, got 0"),
        (lambda: Law(a2=-1.0), "Law.a2: expected a positive number, got -1"),
        (lambda: Law().loss(1e6, 512, 64, 0), "tokens: expected positive numbers"),
        (lambda: Law().best_vocab(1e6, 64, -1.0), "positive parameters, width and budget"),
        (lambda: derivative_root(0), "non_vocab_params: expected a positive number, got 0"),
        (lambda: derivative_root(1e6, -1), "width: expected a positive number, got -1"),
        (lambda: unigram_normalised_loss([1.0], [0, 1], [1, 1]), r"one each, got \(1,\), \(2,\)"),
        (lambda: unigram_normalised_loss([], [], [1]), "the mean of no tokens"),
        (lambda: unigram_normalised_loss([1.0], [2], [1, 1]), r"expected 0\.\.1, got 2"),
        (lambda: unigram_normalised_loss([1.0], [1], [1, 0]), "token .1. never occurs"),
        (lambda: fit(Points(*(a[:5] for a in SIX))), r"at least 6 of them, got \(5,\)"),
        (lambda: fit(SIX._replace(loss=np.full(12, np.nan))), "not all numbers are finite"),
        (lambda: fit(SIX._replace(tokens=np.full(12, 1e9))), "all have the same tokens"),
        (lambda: fit(SIX, starts=((0.0,),)), "expected values of 6 parameters, got 1"),
    ],
)
def test_bad_input(call, message):
    pytest.importorskip("scipy")
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
