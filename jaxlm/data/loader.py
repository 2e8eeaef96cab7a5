"""Batches as a pure function: batch = f(seed, step).

Most input pipelines (grain, tf.data, PyTorch's DataLoader) are iterators: their place in the data is state that has to
be saved, restored, and rebuilt when the number of processes changes, and packing or filtering inside them makes that
state long. Here there is none. The source answers any row by number, the shuffle of an epoch is a permutation computed
one element at a time, so a step *is* its data position: resuming at step s, on any number of processes, is
``loader(s)``, and every process count sees the same global batches. That is why this is used and not grain.

The shuffle is a Feistel network on the index (Luby & Rackoff 1988, How to Construct Pseudorandom Permutations from
Pseudorandom Functions), in Z_a x Z_a with a = ceil(sqrt(n)) and additions mod a, walked until it falls back into 0..n-1
(Black & Rogaway 2002, Ciphers with Arbitrary Finite Domains): a bijection in O(1) memory for any n.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose

Batch = dict[str, NDArray]
REMAINDERS = ("wrap", "drop", "pad")
ROUNDS = 8


class Source(Protocol):
    """Rows by number; row i is always the same. One with ``batch(rows) -> Batch`` is asked for all rows at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def shuffled(index: ArrayLike, n: int, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """Where the permutation of 0..n-1 belonging to (seed, epoch) sends each index; any shape, O(1) memory in n.

    Raises `IndexError` for an index outside 0..n-1.
    """
    start = np.atleast_1d(np.asarray(index, np.int64))
    if start.size and (start.min() < 0 or start.max() >= n):
        raise IndexError(f"shuffled: expected indices in 0..{n - 1}, got {start.min()}..{start.max()}")
    side, keys = np.uint64(math.isqrt(n - 1) + 1), _keys(seed, epoch)

    def network(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x // side, x % side
        for key in keys:
            left, right = right, (left + _mix(right ^ key) % side) % side
        return left * side + right

    out = network(start.astype(np.uint64))
    while (outside := out >= n).any():
        out[outside] = network(out[outside])
    return out.astype(np.int64).reshape(np.shape(index))


def stack(items: Sequence[Mapping[str, ArrayLike]]) -> Batch:
    """Row dicts as one batch dict: every entry gains a leading axis B."""
    return {name: np.stack([np.asarray(item[name]) for item in items]) for name in items[0]}


@dataclasses.dataclass(frozen=True)
class Loader:
    """``loader(step)`` is the batch of that step, whatever was asked before.

    Attributes:
      source: rows by number (a packed corpus, a task).
      batch_size: rows of the *global* batch.
      seed: of the shuffle.
      shuffle: a new order for each epoch; otherwise the order of the source, each epoch.
      remainder: what happens when the batch size does not divide the rows. ``"wrap"``: epochs follow each other without
        a gap, so a batch may hold the end of one and the start of the next, and nothing is dropped. ``"drop"``: the
        last ``n mod batch_size`` rows of each epoch's order are left out (others each epoch, when shuffled).
        ``"pad"``: the last batch of an epoch is filled with rows of ``weights`` 0, so steps 0..steps_per_epoch-1 count
        each row exactly once in a weighted mean: for evaluation.
      collate: makes a batch dict from a list of rows; unused by sources that have ``batch``.
      process_index, process_count: which part of each global batch this process makes, see `shard`.

    Raises:
      ConfigError: an empty source, a batch the source cannot fill under ``"drop"``, or one that does not divide evenly.
    """

    source: Source
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    remainder: str = "wrap"
    collate: Callable[[list[Any]], Batch] = stack
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        n, size, count = len(self.source), self.batch_size, self.process_count
        choose("remainder", self.remainder, REMAINDERS)
        require(n > 0, "Loader.source: expected at least one row, got none")
        require(size > 0, f"Loader.batch_size: expected at least 1, got {size}")
        require(self.seed >= 0, f"Loader.seed: expected 0 or more, got {self.seed}")
        require(
            self.remainder != "drop" or n >= size,
            f"Loader.batch_size {size} is more than the {n} rows of the source, which leaves no batch under 'drop'",
        )
        require(0 <= self.process_index < count, f"Loader: process {self.process_index} is not one of {count}")
        require(size % count == 0, f"Loader.batch_size {size} is not divisible by the {count} processes")

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; under ``"wrap"`` the number of steps after which every row was seen."""
        n, size = len(self.source), self.batch_size
        return n // size if self.remainder == "drop" else -(-n // size)

    def shard(self, process_index: int, process_count: int) -> Self:
        """The loader of one process: rows [i B/P, (i+1) B/P) of the very same global batches.

        Raises `ConfigError` if the processes do not divide the batch.
        """
        return dataclasses.replace(self, process_index=process_index, process_count=process_count)

    def indices(self, step: int, rows: slice | None = None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(source rows of the step's batch, whether each is real and not filler), both [B]."""
        if step < 0:
            raise ConfigError(f"Loader: expected a step of 0 or more, got {step}")
        n, per_epoch = len(self.source), self.steps_per_epoch
        place = np.arange(self.batch_size)[self._own if rows is None else rows]
        if self.remainder == "wrap":
            place = place + step * self.batch_size
            epoch, place = place // n, place % n
        else:
            epoch = np.full(place.shape, step // per_epoch)
            place = place + step % per_epoch * self.batch_size
        real = place < n
        place = np.where(real, place, 0)
        if self.shuffle:
            for e in np.unique(epoch):
                place[epoch == e] = shuffled(place[epoch == e], n, self.seed, int(e))
        return place, real

    def __call__(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of a step, arrays with leading axis B (or B / process_count).

        Args:
          step: 0 or more.
          rows: other rows of the global batch than this process's own, for meshes that split it differently
            (``jax.make_array_from_callback`` asks for such slices).
        """
        index, real = self.indices(step, rows)
        whole = getattr(self.source, "batch", None)
        batch = whole(index) if whole else self.collate([self.source[int(i)] for i in index])
        if real.all():
            return batch
        if "weights" not in batch:
            raise ConfigError(f"Loader.remainder='pad' needs batches with 'weights', got {', '.join(batch)}")
        weights = batch["weights"]
        return {**batch, "weights": weights * real.reshape(-1, *[1] * (weights.ndim - 1)).astype(weights.dtype)}

    @property
    def _own(self) -> slice:
        rows = self.batch_size // self.process_count
        return slice(self.process_index * rows, (self.process_index + 1) * rows)


@functools.lru_cache(maxsize=16)
def _keys(seed: int, epoch: int) -> NDArray[Any]:
    """Round keys of the shuffle, uint64 [ROUNDS]."""
    return np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(ROUNDS, np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
