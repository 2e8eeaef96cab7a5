"""Span corruption: nothing is lost, spans as in T5, and the compiled form equal to the plain one."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.data.span_corruption import BYT5_SENTINEL, T5_SENTINEL, SpanCorruption
from jaxlm.objective.span_corruption import SpanCorruption as Objective
from jaxlm.objective.span_corruption import corrupt, noise_mask


def restored(how, source, target):
    """The tokens, by reading a target's spans into the places of an input's sentinels."""
    assert source[-1] == how.end == target[-1]
    spans, k = {}, -1
    for token in target[:-1].tolist():
        if token == how.sentinel - k - 1:
            k += 1
            spans[token] = []
        else:
            spans[how.sentinel - k].append(token)
    if how.closing:
        assert spans.pop(how.sentinel - k) == []
    out = []
    for token in source[:-1].tolist():
        out += spans.pop(token, [token])
    assert not spans
    return out


@given(st.integers(2, 600), st.floats(0.05, 0.6), st.floats(1, 5), st.booleans(), st.integers(0, 99))
def test_nothing_is_lost_and_sizes_are_by_length_alone(length, density, mean, closing, index):
    how = SpanCorruption(density=density, mean_length=mean, closing=closing, sentinel=2000, end=1)
    tokens = np.arange(length) % 1000 + 2
    source, target = how.pair(tokens, 7, index)
    assert restored(how, source, target) == tokens.tolist()
    assert (len(source), len(target)) == how.sizes(length)
    noise, spans = how.counts(length)
    assert noise == min(max(round(length * density), 1), length - 1) and 1 <= spans <= noise
    again = how.pair(tokens, 7, index)
    np.testing.assert_array_equal(source, again[0])
    np.testing.assert_array_equal(target, again[1])


def test_the_numbers_of_the_paper():
    """512 tokens at 15 % in spans of 3: T5's inputs and targets; with a target of 114 an input of 512 takes 568."""
    assert SpanCorruption().counts(568) == (85, 28)
    assert SpanCorruption(closing=False).sizes(568) == (512, 114)
    assert (T5_SENTINEL, BYT5_SENTINEL) == (32099, 258)
    byt5 = SpanCorruption(sentinel=BYT5_SENTINEL, mean_length=20.0)
    source, _ = byt5.pair(np.arange(3, 200), 0)
    marks = [token for token in source.tolist() if token > 202]
    assert marks == [258 - k for k in range(byt5.counts(197)[1])]


def test_all_ways_of_cutting_are_equally_likely():
    """Length 9, 3 noise tokens in 2 spans: 2 x 5 masks; drawn in numpy and in jax."""
    how = SpanCorruption(density=1 / 3, mean_length=1.5, sentinel=99)
    assert how.counts(9) == (3, 2)
    drawn = jax.jit(jax.vmap(lambda key: noise_mask(how, 9, key)))(jax.random.split(jax.random.key(0), 4000))
    rng, plain = np.random.default_rng(0), np.zeros((4000, 9), bool)
    for row in plain:
        for start, stop in how.spans(9, rng):
            row[start:stop] = True
    for masks in (np.asarray(drawn), plain):
        counts = collections.Counter(map(bytes, masks))
        assert len(counts) == 10
        assert all(abs(count - 400) < 5 * 20 for count in counts.values())
        assert not masks[:, 0].any() and masks[:, -1].all()  # T5: kept first, noise last


@pytest.mark.parametrize(("length", "closing"), [(2, False), (3, True), (17, True), (40, False)])
def test_compiled_equals_plain(length, closing):
    how = SpanCorruption(density=0.3, mean_length=2.0, closing=closing, sentinel=999, end=1)
    compiled = jax.jit(lambda tokens, real, noise: corrupt(how, tokens, real, noise))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tokens, spans = rng.integers(2, 500, length), how.spans(length, rng)
        noise = np.zeros(length, bool)
        for start, stop in spans:
            noise[start:stop] = True
        real = np.arange(length) < max(1, length - seed % 4)
        whole, weights = compiled(tokens.astype(np.int32), real, noise)
        source, target = how.corrupt(tokens, spans)
        np.testing.assert_array_equal(whole, np.concatenate([source, target]))
        assert np.asarray(weights).sum() == len(target) - (noise & ~real).sum()
        assert not np.asarray(weights)[: len(source)].any()


def test_the_objective_prepares_rows():
    objective = make("objective", {"name": "span_corruption", "args": {"how": {"sentinel": 63, "end": 1}}})
    assert from_dict(Objective, to_dict(objective)) == objective
    tokens = np.random.default_rng(0).integers(2, 50, (3, 40)).astype(np.int32)
    batch = {"tokens": jnp.asarray(tokens), "segment_ids": jnp.ones((3, 40), jnp.int32)}
    prepare = jax.jit(objective.prepare)
    made = {name: np.asarray(x) for name, x in prepare(batch, jax.random.key(1)).items()}
    first, second = objective.how.sizes(40)
    assert {x.shape for x in made.values()} == {(3, first + second - 1)}
    np.testing.assert_array_equal(made["tokens"][:, 1:], made["targets"][:, :-1])
    for row in range(3):
        whole = np.append(made["tokens"][row], made["targets"][row, -1])
        assert restored(objective.how, whole[:first], whole[first:]) == tokens[row].tolist()
        np.testing.assert_array_equal(made["weights"][row], np.arange(first + second - 1) >= first - 1)
    again = prepare(batch, jax.random.key(1))
    np.testing.assert_array_equal(made["tokens"], again["tokens"])
    assert (made["tokens"] != np.asarray(prepare(batch, jax.random.key(2))["tokens"])).any()
    assert len({row.tobytes() for row in made["tokens"] >= 60}) > 1  # rows differ in their spans


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpanCorruption(density=1.0), r"density: expected a share in \(0, 1\), got 1.0"),
        (lambda: SpanCorruption(mean_length=0.5), "mean_length: expected at least 1"),
        (lambda: SpanCorruption(end=-1), "SpanCorruption.end"),
        (lambda: SpanCorruption(sentinel=-1), "SpanCorruption.sentinel"),
        (lambda: SpanCorruption().counts(1), "no room for noise"),
        (lambda: SpanCorruption(sentinel=3).pair(np.arange(200), 0), "10 spans in 200 tokens count down to -6"),
        (lambda: SpanCorruption().corrupt([1, 2, 3], [(0, 2), (1, 3)]), r"span \[1, 3\) does not follow 2"),
        (lambda: SpanCorruption().corrupt([1, 2, 3], [(1, 1)]), r"span \[1, 1\)"),
        (lambda: Objective(inner="next_tokens"), "unknown objective 'next_tokens'"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
