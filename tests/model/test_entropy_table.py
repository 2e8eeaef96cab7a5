"""The entropies of an entropy patcher against counting by hand, and their way into a model."""

from __future__ import annotations

import collections
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.model.patcher import entropy_table
from jaxlm.model.patcher.entropy import install

TEXTS = [b"abracadabra abra", b"cadabra, abra!", b"", b"x"]
SIZE, ORDER, BUCKETS = 128, 3, 4096


def by_hand(context: bytes) -> list[float] | None:
    """Witten and Bell's p(. | context) from counts of substrings; None if no byte ever came after the context."""
    seen = collections.Counter(
        text[i + len(context)]
        for text in TEXTS
        for i in range(len(text) - len(context))
        if text[i : i + len(context)] == context
    )
    if not seen:
        return None
    below = by_hand(context[1:]) if context else [1 / SIZE] * SIZE
    assert below is not None
    total, different = sum(seen.values()), len(seen)
    return [(seen[s] + different * below[s]) / (total + different) for s in range(SIZE)]


def test_entropies_are_those_of_the_counts() -> None:
    """After each byte of a text, by the longest context that was seen; with so many buckets none meet."""
    table = entropy_table.fit(TEXTS, ORDER, BUCKETS, SIZE)
    text = b"a cadabra! abrz"
    ids = np.frombuffer(b"\0" * ORDER + text, np.uint8).astype(np.int32)
    last = [jnp.asarray(ids[None, ORDER - i : len(ids) - i]) for i in range(ORDER)]
    found = np.asarray(entropy_table.look_up(jnp.asarray(table), last, jnp.arange(len(text))[None])[0])
    orders = set()
    for t in range(len(text)):
        for j in range(min(ORDER, t + 1), -1, -1):
            if (p := by_hand(text[t + 1 - j : t + 1])) is not None:
                break
        assert p is not None
        orders.add(j)
        np.testing.assert_allclose(found[t], -sum(x * math.log(x) for x in p), rtol=1e-5, err_msg=f"{t}, order {j}")
    assert orders == set(range(ORDER + 1))


def test_buckets_are_alike_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    last = [rng.integers(0, 300, 500).astype(np.int32) for _ in range(4)]
    for buckets in (1, 7, 65536):
        one = entropy_table.bucket(last, buckets)
        two = entropy_table.bucket([jnp.asarray(x) for x in last], buckets)
        np.testing.assert_array_equal(one, two)
        assert one.min() >= 0 and one.max() < buckets
    assert len(np.unique(entropy_table.bucket(last, 65536))) > 480  # they do not fall together
    assert not np.array_equal(entropy_table.bucket(last[::-1], 65536), one)


def test_files_and_models(tmp_path) -> None:
    table = entropy_table.fit(TEXTS, 1, 16, SIZE)
    entropy_table.save(tmp_path / "e.npy", table)
    np.testing.assert_array_equal(entropy_table.load(tmp_path / "e.npy"), table)
    assert [path.name for path in tmp_path.iterdir()] == ["e.npy"]
    params = {"head": 1, "patcher": {"entropies": jnp.zeros((2, 16)), "up": 2}}
    new = install(params, table)
    np.testing.assert_array_equal(new["patcher"]["entropies"], table)
    assert new["patcher"]["up"] == 2 and new["head"] == 1 and not params["patcher"]["entropies"].any()


def test_bad_input(tmp_path) -> None:
    (tmp_path / "bad").write_bytes(b"no table")
    np.save(tmp_path / "one.npy", np.zeros(3, np.float32))
    holds = lambda entropies: {"patcher": {"entropies": entropies}}
    model, other = holds(jnp.zeros((2, 16))), np.zeros((3, 16), np.float32)
    of_a_model = holds({"head": {"kernel": jnp.zeros((4, 5))}})
    for call, match in [
        (lambda: entropy_table.fit([], 1), "expected texts with at least one byte"),
        (lambda: entropy_table.fit([[300]], 1), r"text 0: symbol \[300\] is outside 0..255"),
        (lambda: entropy_table.fit([b"a"], -1), "expected order >= 0"),
        (lambda: entropy_table.fit([b"a"], 9), "do not fit in 63 bits"),
        (lambda: entropy_table.load(tmp_path / "none"), "no file"),
        (lambda: entropy_table.load(tmp_path / "bad"), "is no table"),
        (lambda: entropy_table.load(tmp_path / "one.npy"), "is no table"),
        (lambda: install(model, other), "a table of order 1 and 16 buckets, got order 2 and 16"),
        (lambda: install(model, {"head": other}), "a table of order 1 and 16 buckets, got a model"),
        (lambda: install(of_a_model, {"head": {"kernel": other}}), "not the parameters of .*: head/kernel differ"),
        (lambda: install(of_a_model, other), "not the parameters of"),
        (lambda: install({}, other), "patcher has no entropies"),
    ]:
        with pytest.raises(ConfigError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
