"""Data-mixture inference: pair counts at every step, the program's optimum, and how far each share can go."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.tokenize.bpe import learn
from jaxlm.tokenize.mixture_inference import infer, pair_counts_by_step
from tests.golden.tokenization.data import files


def cases(golden):
    return [case for file in files(golden, "data_mixture_inference") for case in file["cases"]]


def merges(case):
    return [(left, right) for left, right, *_ in case["merges"]]


def words(case):
    """What the shares are inferred from."""
    return case["attacker_word_counts"] or case["training_word_counts"]


def test_pair_counts_by_step(golden):
    seen = 0
    for case in cases(golden):
        for name, expected in (case["pair_count_changes"] or {}).items():
            counted = {tuple(word.encode()): count for word, count in words(case)[name].items()}
            changes = pair_counts_by_step(merges(case), counted)
            assert changes.pairs() == case["pair_totals_step0"][name]
            rows = zip(changes.step, changes.left, changes.right, changes.count, strict=True)
            found = sorted(tuple(int(x) for x in row) for row in rows)
            assert found == sorted((t, *row) for t, step in enumerate(expected) for row in step)
            seen += 1
    assert seen


def test_merges_are_those_of_the_mixture(golden):
    for case in cases(golden):
        mixed = {}
        for name, counts in case["training_word_counts"].items():
            for word, count in counts.items():
                key = tuple(word.encode())
                mixed[key] = mixed.get(key, 0) + case["training_multipliers"][name] * count
        assert [(step.left, step.right) for step in learn(mixed, len(merges(case)))] == merges(case)


def test_optimum_and_ranges(golden):
    pytest.importorskip("highspy")
    for case in cases(golden):
        found, lp = infer(merges(case), {name: words(case)[name] for name in case["categories"]}), case["lp"]
        assert abs(found.objective - lp["objective"]) <= 1e-6
        np.testing.assert_allclose(found.least, lp["alpha_min"], rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.greatest, lp["alpha_max"], rtol=0, atol=1e-8)
        corner = infer(merges(case), {name: words(case)[name] for name in case["categories"]}, ranges=False)
        for shares in (found.pairs, corner.pairs):
            assert (np.subtract(shares, lp["alpha_min"]) >= -1e-5).all()
            assert (np.subtract(lp["alpha_max"], shares) >= -1e-5).all()
        true = np.array([case["true_share_of_pairs"], case["true_share_of_bytes"]])
        error = np.square(np.array([found.pairs, found.bytes]) - true).mean(1)
        assert np.log10(error).max() < (-6 if case["attacker_sees_training_text"] else -4.5)
        assert abs(sum(found.bytes) - 1) < 1e-12 and found.constraints <= lp["constraints_with_a_negative_coefficient"]
