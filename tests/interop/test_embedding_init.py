"""Methods of first embeddings: what each promises, and the cases in which its formula has no answer of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core import registry
from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.interop.embedding_init import METHODS
from jaxlm.interop.embedding_init.base import Material, cosine, nearest_softmax, sparsemax
from jaxlm.interop.embedding_init.ofa import factorise

RNG = np.random.default_rng(0)
V, D, A, OLD, NEW = 40, 6, 4, 25, 9
SOURCE = RNG.standard_normal((V, D)) * [1, 2, 3, 4, 5, 6] + 7.0
TARGET_AUX, SOURCE_AUX = RNG.standard_normal((OLD + NEW, A)), RNG.standard_normal((V, A))
OVERLAP = np.concatenate([RNG.permutation(V)[:OLD], np.full(NEW, -1)])
PIECES = [[]] * OLD + [RNG.integers(0, V, n).tolist() for n in range(1, NEW + 1)]

# Settings that are not the defaults.
ARGUMENTS = {"covariance": {"scale": 0.5}, "wechsel": {"neighbours": 3}, "ofa": {"rank": 4, "temperature": 0.2}}


def material(**changes):
    given = {
        "source": SOURCE,
        "overlap": OVERLAP,
        "pieces": PIECES,
        "auxiliary_target": TARGET_AUX,
        "auxiliary_source": SOURCE_AUX,
    }
    return Material(**(given | changes))


def run(name, seed=0, **changes):
    method = make("embedding_init", {"name": name, "args": ARGUMENTS.get(name, {})})
    return method(material(**changes), np.random.default_rng(seed))


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    method = make("embedding_init", {"name": name, "args": ARGUMENTS.get(name, {})})
    assert from_dict(type(method), to_dict(method)) == method and registry.name_of("embedding_init", method) == name
    for dtype in (np.float64, np.float32, np.float16):
        source = SOURCE.astype(dtype)
        out = run(name, source=source)
        assert out.shape == (OLD + NEW, D) and out.dtype == dtype and np.isfinite(out).all()
        assert out[:OLD].tobytes() == source[OVERLAP[:OLD]].tobytes()
    np.testing.assert_array_equal(run(name, seed=1), run(name, seed=1))
    rows = run(name)[OLD:]
    low, high = SOURCE.min(0), SOURCE.max(0)
    if name not in ("normal", "random", "covariance", "ofa"):  # averages lie among what they are averages of
        assert ((rows >= low - 1e-9) & (rows <= high + 1e-9)).all()


def test_what_draws_has_the_moments_it_promises():
    many = np.concatenate([OVERLAP[:OLD], np.full(60_000, -1)])
    for name, scale in (("random", 1.0), ("covariance", 0.5)):
        drawn = run(name, overlap=many, pieces=(), auxiliary_target=None)[OLD:]
        deviation = SOURCE.std(0)
        np.testing.assert_allclose((drawn.mean(0) - SOURCE.mean(0)) / deviation, 0, atol=0.02)
        wanted = np.cov(SOURCE.T, bias=True) * scale if name == "covariance" else np.diag(deviation**2)
        np.testing.assert_allclose(
            np.cov(drawn.T) / np.outer(deviation, deviation), wanted / np.outer(deviation, deviation), atol=0.02
        )
    assert np.abs(np.corrcoef(SOURCE.T) - np.eye(D)).max() > 0.1  # or the two could not be told apart
    drawn = run("normal", overlap=many, pieces=(), auxiliary_target=None)[OLD:]
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.02 * 0.02)
    np.testing.assert_allclose(np.cov(drawn.T) / 0.02**2, np.eye(D), atol=0.03)


def test_only_regular_rows_are_learned_from():
    """Special tokens and padding of the table may hold anything."""
    regular = np.ones(V, bool)
    regular[[3, 8]] = False
    spoilt = SOURCE.copy()
    spoilt[[3, 8]] = 1e6
    overlap = np.where(np.isin(OVERLAP, [3, 8]), 0, OVERLAP)
    pieces = [[i if i not in (3, 8) else 0 for i in found] for found in PIECES]
    for name in METHODS:
        one = run(name, overlap=overlap, pieces=pieces, regular=regular)
        two = run(name, overlap=overlap, pieces=pieces, regular=regular, source=spoilt)
        np.testing.assert_allclose(one, two, rtol=1e-9)
    with pytest.raises(ConfigError, match="no source token has an embedding to learn from"):
        run("mean", regular=np.zeros(V, bool))


@pytest.mark.parametrize("name", ["focus", "wechsel"])
def test_a_zero_vector_gives_the_mean(name):
    target, source = TARGET_AUX.copy(), SOURCE_AUX.copy()
    target[[OLD, OLD + 4]] = 0.0  # two new tokens
    target[2], source[[5, 6]] = 0.0, 0.0  # anchors, which then are none
    out = run(name, auxiliary_target=target, auxiliary_source=source)
    np.testing.assert_allclose(out[[OLD, OLD + 4]], np.broadcast_to(SOURCE.mean(0), (2, D)), rtol=1e-12)
    assert np.isfinite(out).all() and np.abs(out[OLD + 1] - SOURCE.mean(0)).max() > 1e-3
    with pytest.raises(ConfigError, match="no auxiliary vector: of .* none has one that is not zero"):
        run(name, auxiliary_target=np.zeros_like(TARGET_AUX), auxiliary_source=np.zeros_like(SOURCE_AUX))


def test_ofa_draws_the_coordinates_of_a_zero_vector():
    target = TARGET_AUX.copy()
    target[OLD] = 0.0
    one, two = (run("ofa", seed, auxiliary_target=target) for seed in (0, 1))
    assert (one[OLD] != two[OLD]).any() and np.array_equal(one[OLD + 1 :], two[OLD + 1 :])
    _, primitives = factorise(SOURCE, ARGUMENTS["ofa"]["rank"])  # within the space of the factors
    np.testing.assert_allclose(one[OLD:] @ primitives.T @ primitives, one[OLD:], atol=1e-9)


def test_all_cosines_negative():
    """The weights are those of the same cosines moved up: still the least dissimilar tokens, still a distribution."""
    anchors = np.array([[1.0, 0.1], [1.0, -0.2], [0.9, 0.3]])
    similar = cosine(np.array([[-1.0, 0.0]]), anchors)
    assert (similar < 0).all()
    weights = sparsemax(similar)
    assert weights.sum() == pytest.approx(1) and weights.argmax() == similar.argmax()
    np.testing.assert_allclose(weights, sparsemax(similar + 5.0))
    np.testing.assert_allclose(nearest_softmax(similar, 2, 0.1), nearest_softmax(similar + 5.0, 2, 0.1))


@settings(max_examples=60)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=7))
def test_sparsemax_is_the_projection_on_the_simplex(z):
    """Against the optimality conditions: w >= 0, sum 1, and z - w is constant where w > 0, no larger elsewhere."""
    w = sparsemax(np.array([z]))[0]
    assert w.min() >= 0 and w.sum() == pytest.approx(1)
    rest = np.array(z) - w
    assert np.ptp(rest[w > 1e-12]) < 1e-9 and (rest[w <= 1e-12] <= rest[w > 1e-12].max() + 1e-9).all()


def test_factors_are_the_best_of_their_rank():
    for shape in ((30, 8), (8, 30)):
        matrix = np.random.default_rng(1).standard_normal(shape)
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        for rank in (1, 3, 8, 0, 50):
            f, p = factorise(matrix, rank)
            d = min(rank or 8, 8)
            assert f.shape == (shape[0], d) and p.shape == (d, shape[1])
            np.testing.assert_allclose(p @ p.T, np.eye(d), atol=1e-12)
            np.testing.assert_allclose(f @ p, (u[:, :d] * s[:d]) @ vt[:d], atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("embedding_init", "fokus"), "unknown embedding_init 'fokus'; did you mean 'focus'"),
        (lambda: run("focus", auxiliary_target=None), "Focus needs auxiliary vectors of the target tokens; give texts"),
        (lambda: run("wechsel", auxiliary_source=None), "Wechsel needs auxiliary vectors of the source tokens"),
        (lambda: run("mean", source=SOURCE[:3]), "source token 39 is beyond the 3 rows"),
        (lambda: run("mean", source=SOURCE[0]), r"expected shape \[V, D\], got \[6\]"),
        (lambda: run("focus", auxiliary_target=TARGET_AUX[1:]), "auxiliary_target: expected a vector for each of 34"),
        (lambda: run("ofa", auxiliary_source=SOURCE_AUX[:, 1:]), "should be of one space; their widths differ"),
        (lambda: make("embedding_init", {"name": "ofa", "args": {"rank": -1}}), "Ofa.rank: expected 0"),
        (
            lambda: make("embedding_init", {"name": "wechsel", "args": {"neighbours": 0}}),
            "Wechsel.neighbours: expected 1",
        ),
        (lambda: make("embedding_init", {"name": "wechsel", "args": {"temperature": 0.0}}), "Wechsel.temperature"),
        (lambda: make("embedding_init", {"name": "covariance", "args": {"scale": -1.0}}), "Covariance.scale"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
