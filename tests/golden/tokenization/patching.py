"""Where patches begin, by entropies, spaces and routing; smoothing, confidence and loss of the latter."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxlm.model.patcher import boundaries
from jaxlm.model.patcher.base import at
from tests.golden.tokenization.data import files


def cases_of(golden, kind: str) -> list[dict]:
    cases = [case for file in files(golden, "patching_chunking") for case in file.get(kind, [])]
    assert cases
    return cases


def starts_of(rule: str, case: dict, threshold: float, cut: int = 0) -> list[int]:
    """Starts within a text of n bytes, from what is known after each byte."""
    after = np.asarray(case["entropy_after"], np.float32)
    before = np.concatenate([[0], after[:-1]])
    ends = boundaries.entropy_ends(
        rule, jnp.asarray(after), jnp.asarray(before), jnp.arange(len(after)), threshold, case["threshold_add"]
    )
    starts = np.concatenate([[True], np.asarray(ends)[:-1]])
    if cut:
        since = boundaries.run_index(jnp.asarray(starts)[None], jnp.full((1,), -1))[0]
        starts = np.asarray(since % cut == 0)
    return np.nonzero(starts)[0].tolist()


def test_entropy_patches(golden):
    for case in cases_of(golden, "entropy_patching"):
        lengths = lambda starts, n=case["n"]: np.diff([*starts, n]).tolist()
        threshold = case["threshold"]
        assert len(case["entropy_after"]) == case["n"]
        starts = starts_of("global", case, threshold)
        assert starts == case["global_starts"]
        assert lengths(starts) == case["global_lengths"]
        for name in case:
            if name.startswith("global_lengths_max"):
                longest = int(name.removeprefix("global_lengths_max"))
                assert lengths(starts_of("global", case, threshold, longest)) == case[name]
        assert starts_of("monotonic", case, threshold) == case["monotonic_starts_with_threshold_add"]
        assert starts_of("combined", case, threshold) == case["combined_starts"]


def test_spacebyte_positions(golden):
    for case in cases_of(golden, "spacebyte"):
        text = jnp.asarray(list(case["text"].encode()), jnp.int32)
        assert len(text) == case["bytes"]
        np.testing.assert_array_equal(boundaries.spacelike(text), np.asarray(case["spacelike"], bool))
        previous = jnp.concatenate([jnp.full((1,), ord("a")), text[:-1]])  # as a byte that is not spacelike
        none = jnp.zeros(len(text), bool)
        found = np.nonzero(np.asarray(boundaries.global_positions(text, previous, none)))[0].tolist()
        assert found == case["global_positions"]
        assert [0, *(i + 1 for i in found if i + 1 < len(text))] == [i for i in case["starts_after"] if i < len(text)]
        first = none.at[0].set(True)
        assert bool(boundaries.global_positions(text, previous, first)[0])


def test_hnet_routing(golden):
    for case in cases_of(golden, "hnet"):
        hidden = jnp.asarray(case["hidden"], jnp.float32)
        first = jnp.zeros(len(hidden), bool).at[0].set(True)
        q = jnp.concatenate([jnp.zeros_like(hidden[:1]), hidden[:-1]])
        p = boundaries.routing_probability(q, hidden, first)
        np.testing.assert_allclose(p, case["boundary_prob"], atol=1e-6)
        np.testing.assert_array_equal(p > 0.5, np.asarray(case["boundary"], bool))
        places = np.nonzero(np.asarray(p > 0.5))[0]
        assert places.tolist() == case["chunk_positions"]
        values = jnp.asarray(case["chunk_values"], jnp.float32)[None]
        start = jnp.zeros((1, len(places)), bool).at[0, 0].set(True)
        smoothed = boundaries.smooth(values, p[places][None], start, jnp.full_like(values[:, 0], 7.0))
        np.testing.assert_allclose(smoothed[0], case["smoothed"], atol=1e-6)
        latest = jnp.cumsum(p > 0.5)[None] - 1
        np.testing.assert_allclose(at(smoothed, latest)[0], case["upsampled"], atol=1e-6)
        np.testing.assert_allclose(boundaries.confidence(p), case["confidence"], atol=1e-6)
        loss = boundaries.ratio_loss(p, jnp.ones(len(p), bool), case["ratio_target"])
        np.testing.assert_allclose(loss, case["ratio_loss"], rtol=1e-6)
