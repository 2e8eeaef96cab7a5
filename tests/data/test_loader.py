"""The stateless loader: a bijective shuffle, batches by step alone, equal for any number of processes."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.data.loader import Loader, shuffled, stack
from jaxlm.data.pack import Packed, Padded, TokenStream
from jaxlm.data.records import Document
from jaxlm.tokenize.byte import ByteTokenizer


class Numbers:
    """Row i is {"x": i, "weights": [1, 1]}."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        assert type(i) is int and 0 <= i < self.n
        return {"x": i, "weights": np.ones(2, np.float32)}


def seen(loader, steps):
    return np.concatenate([loader(step)["x"] for step in steps])


@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**70), st.integers(0, 10**6))
def test_shuffle_is_a_bijection(n, seed, epoch):
    out = shuffled(np.arange(n), n, seed, epoch)
    assert out.dtype == np.int64 and np.array_equal(np.sort(out), np.arange(n))
    assert shuffled(n - 1, n, seed, epoch) == out[-1]  # one element needs no other


def test_shuffle_of_a_domain_that_would_not_fit_in_memory():
    n = 10**15 + 37
    index = np.arange(n - 5000, n)
    out = shuffled(index, n, 1)
    assert len(np.unique(out)) == 5000 and out.min() >= 0 and out.max() < n
    assert abs(out.mean() / n - 0.5) < 0.03


def test_shuffle_is_pinned():
    """Changing the permutation would change what every resumed run sees."""
    assert shuffled(np.arange(10), 10, seed=0, epoch=0).tolist() == [1, 5, 4, 0, 6, 2, 7, 3, 8, 9]
    assert shuffled(np.arange(10), 10, seed=0, epoch=1).tolist() == [7, 2, 9, 1, 6, 5, 4, 0, 3, 8]
    assert shuffled(np.arange(10), 10, seed=1, epoch=0).tolist() == [5, 0, 8, 4, 3, 9, 1, 2, 6, 7]


@pytest.mark.parametrize("n", [2, 7, 10])
def test_shuffle_sends_each_row_everywhere_alike(n):
    trials = 2000
    table = np.zeros((n, n))
    pairs = collections.Counter()
    for epoch in range(trials):
        out = shuffled(np.arange(n), n, 5, epoch)
        table[np.arange(n), out] += 1
        pairs[tuple(out[:2])] += 1
    expected = trials / n
    chi2 = ((table - expected) ** 2 / expected).sum()
    degrees = (n - 1) ** 2
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5 + 8
    expected = trials / (n * (n - 1))
    chi2 = sum((pairs[a, b] - expected) ** 2 / expected for a in range(n) for b in range(n) if a != b)
    degrees = n * (n - 1) - 1
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5 + 8


def test_shuffle_leaves_no_trace_of_order():
    out = shuffled(np.arange(5000), 5000, 3)
    assert abs(np.corrcoef(np.arange(5000), out)[0, 1]) < 0.05
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.05
    assert np.mean(out == shuffled(np.arange(5000), 5000, 3, epoch=1)) < 0.005


@given(st.integers(1, 30), st.integers(1, 12), st.booleans())
def test_wrap_shows_every_row_once_an_epoch(n, size, shuffle):
    loader = Loader(Numbers(n), size, seed=4, shuffle=shuffle)
    stream = seen(loader, range(-(-3 * n // size)))
    for epoch in range(3):
        one = stream[epoch * n : (epoch + 1) * n]
        assert np.array_equal(np.sort(one), np.arange(n))
        if not shuffle:
            assert np.array_equal(one, np.arange(n))


@given(st.integers(1, 30), st.integers(1, 12), st.booleans())
def test_drop_leaves_the_remainder_of_each_epoch(n, size, shuffle):
    if n < size:
        with pytest.raises(ConfigError, match="leaves no batch under 'drop'"):
            Loader(Numbers(n), size, remainder="drop")
        return
    loader = Loader(Numbers(n), size, seed=1, shuffle=shuffle, remainder="drop")
    steps = loader.steps_per_epoch
    assert steps == n // size
    for epoch in range(3):
        one = seen(loader, range(epoch * steps, (epoch + 1) * steps))
        assert len(one) == len(set(one)) == steps * size


@given(st.integers(1, 30), st.integers(1, 12), st.booleans())
def test_pad_counts_every_row_exactly_once(n, size, shuffle):
    loader = Loader(Numbers(n), size, seed=1, shuffle=shuffle, remainder="pad")
    for epoch in range(2):
        counts = np.zeros(n)
        for step in range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch):
            batch = loader(step)
            assert batch["weights"].shape == (size, 2) and batch["weights"].dtype == np.float32
            np.add.at(counts, batch["x"], batch["weights"][:, 0])
        assert np.array_equal(counts, np.ones(n))


def test_a_step_does_not_depend_on_what_was_asked_before():
    loader, again = (Loader(Numbers(100), 8, seed=7) for _ in range(2))
    straight = [loader(step)["x"].tolist() for step in range(40)]
    assert [again(step)["x"].tolist() for step in reversed(range(40))] == straight[::-1]
    assert Loader(Numbers(100), 8, seed=8)(0)["x"].tolist() != straight[0]


@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(remainder, processes):
    stream = TokenStream.encode([Document("d", bytes([i] * (i + 1))) for i in range(40)], ByteTokenizer())
    for source in (Packed(stream, 16), Padded(stream, 16)):
        loader = Loader(source, 8, seed=2, remainder=remainder)
        for step in (0, 1, loader.steps_per_epoch - 1, loader.steps_per_epoch, 1000):
            whole = loader(step)
            parts = [loader.shard(i, processes)(step) for i in range(processes)]
            assert {len(part["tokens"]) for part in parts} == {8 // processes}
            for name, array in whole.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
                np.testing.assert_array_equal(loader(step, slice(3, 6))[name], array[3:6])


def test_rows_and_whole_batches_agree():
    """A source with `batch` and the same source without it give the same batches."""
    rows = Packed(TokenStream.encode([Document("d", b"some text " * 50)], ByteTokenizer()), 16)

    class OneByOne:
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            return rows[i]

    for step in range(4):
        fast, slow = (Loader(source, 8, remainder="pad")(step) for source in (rows, OneByOne()))
        for name in fast:
            np.testing.assert_array_equal(fast[name], slow[name])
            assert fast[name].dtype == slow[name].dtype


def test_collate():
    loader = Loader(Numbers(6), 3, shuffle=False, collate=lambda items: {"x": np.array([-item["x"] for item in items])})
    assert loader(1)["x"].tolist() == [-3, -4, -5]
    assert stack([{"a": [1, 2]}, {"a": [3, 4]}])["a"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Loader(Numbers(0), 1), ConfigError, "expected at least one row"),
        (lambda: Loader(Numbers(3), 0), ConfigError, "batch_size: expected at least 1, got 0"),
        (lambda: Loader(Numbers(3), 1, seed=-1), ConfigError, "seed: expected 0 or more"),
        (lambda: Loader(Numbers(3), 2, remainder="dropp"), ConfigError, "did you mean 'drop'"),
        (lambda: Loader(Numbers(9), 6).shard(0, 4), ConfigError, "6 is not divisible by the 4 processes"),
        (lambda: Loader(Numbers(9), 6).shard(2, 2), ConfigError, "process 2 is not one of 2"),
        (lambda: Loader(Numbers(9), 6)(-1), ConfigError, "expected a step of 0 or more, got -1"),
        (
            lambda: Loader(Numbers(3), 2, remainder="pad", collate=lambda items: {"x": np.zeros(2)})(1),
            ConfigError,
            "needs batches with 'weights', got x",
        ),
        (lambda: shuffled([0, 3], 3, 0), IndexError, r"expected indices in 0..2, got 0..3"),
        (lambda: shuffled(-1, 3, 0), IndexError, "got -1..-1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
