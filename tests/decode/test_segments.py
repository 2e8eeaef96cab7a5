"""Segments of a long context: how they are cut, scored and joined."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.decode.segments import choose, condense, entropy, score, split
from jaxlm.model import decoder
from tests.tiny import params_of, tiny, tokens_of

SPEC = tiny({"position": "rotary"}, {"ffn": None}, repeats=1)
MODEL, PARAMS = jaxlm.LanguageModel(SPEC), params_of(SPEC)
CONTEXT, QUESTION = tokens_of(1, 30)[0], tokens_of(1, 4, seed=1)[0]


@pytest.mark.parametrize(
    "length, size, overlap", [(30, 8, 2), (30, 10, 0), (31, 10, 0), (8, 8, 3), (5, 8, 3), (9, 8, 7)]
)
def test_segments_cover_the_context(length, size, overlap):
    spans = split(length, size, overlap)
    assert np.array_equal(np.unique(np.concatenate([np.arange(*span) for span in spans])), np.arange(length))
    assert {stop - start for start, stop in spans} == {min(size, length)}
    shared = [before[1] - after[0] for before, after in zip(spans, spans[1:], strict=False)]
    assert shared[:-1] == [overlap] * len(shared[:-1]) and all(n >= overlap for n in shared)
    assert len(set(spans)) == len(spans)


def test_entropy():
    np.testing.assert_allclose(entropy(jnp.zeros((2, 8))), np.log(8), rtol=1e-6)
    certain = jnp.asarray([0.0, -jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(entropy(certain), 0)
    p = np.random.default_rng(0).dirichlet(np.ones(9))
    np.testing.assert_allclose(entropy(jnp.log(p) + 3), -(p * np.log(p)).sum(), rtol=1e-5)


def test_the_surest_are_kept_in_the_order_of_the_text():
    spans = [(0, 4), (3, 7), (6, 10), (9, 13)]
    np.testing.assert_array_equal(choose(spans, [0.3, 0.9, 0.8, 0.1], 8), [0, 1, 2, 3, 9, 10, 11, 12])
    np.testing.assert_array_equal(choose(spans, [0.3, 0.9, 0.8, 0.1], 12), [0, 1, 2, 3, *range(6, 13)])
    np.testing.assert_array_equal(choose(spans, [0.3, 0.9, 0.8, 0.1], 13), np.arange(13))  # what they share, once
    assert choose(spans, [0.3, 0.9, 0.8, 0.1], 3).size == 0


def test_scores_are_entropies_after_each_segment():
    """Against a pass of its own for each, in NumPy from the logits on."""
    spans = split(len(CONTEXT), 8, 2)
    found = score(MODEL, PARAMS, CONTEXT, QUESTION, spans, batch=2)
    for (start, stop), ours in zip(spans, found, strict=True):
        row = np.concatenate((CONTEXT[start:stop], QUESTION))[None]
        logits = np.asarray(decoder.forward(SPEC, PARAMS, row).logits, np.float64)[0, -1]
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose(ours, -(p * np.log(p)).sum(), rtol=1e-5)


def test_condense():
    spans = split(len(CONTEXT), 8, 2)
    scores = score(MODEL, PARAMS, CONTEXT, QUESTION, spans)
    best = spans[int(np.argmin(scores))]
    prompt = condense(MODEL, PARAMS, CONTEXT, QUESTION, window=12, size=8, overlap=2)
    np.testing.assert_array_equal(prompt, np.concatenate((CONTEXT[slice(*best)], QUESTION)))
    assert prompt.dtype == np.int32
    longer = condense(MODEL, PARAMS, CONTEXT, QUESTION, window=24, size=8, overlap=2)
    assert len(prompt) < len(longer) <= 24
    np.testing.assert_array_equal(longer[-4:], QUESTION)
    whole = condense(MODEL, PARAMS, CONTEXT, QUESTION, window=34, size=8, overlap=2)
    np.testing.assert_array_equal(whole, np.concatenate((CONTEXT, QUESTION)))
    assert jaxlm.generate(MODEL, PARAMS, prompt[None], 2).shape == (1, 2)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"window": 11, "size": 8}, "do not fit a window of 11"),
        ({"window": 20, "size": 0}, "do not fit"),
        ({"window": 20, "size": 8, "overlap": 8}, "overlap: expected 0 to 7"),
        ({"window": 20, "size": 8, "question": []}, "question: expected one token"),
        ({"window": 20, "size": 8, "context": [[1]]}, "context: expected integers"),
        ({"window": 20, "size": 8, "question": [0.5]}, "question: expected integers"),
    ],
)
def test_what_is_refused(options, match):
    options = {"context": CONTEXT, "question": QUESTION, **options}
    with pytest.raises(ConfigError, match=match) as caught:
        condense(MODEL, PARAMS, **options)
    assert "\n" not in str(caught.value)
