"""A model of counts to drive the coders: the last k symbols, smoothed as by Witten & Bell (1991; method C of PPM).

    p_j(s | c) = (n(c s) + u(c) p_{j-1}(s | c')) / (n(c) + u(c)),    p_{-1} = 1 / V

with n the counts in the training texts, u(c) how many different symbols came after the context c of j symbols, and c'
without its oldest symbol. After a prefix the model uses the longest of its last 0..k symbols that was seen in training;
at the start of a text, or of an equal-info window, there are fewer. Frequencies are `range_coder.quantise` of that.

Learned: the counts. It stands in for the small byte model M1 of Lester et al. (2024, arXiv 2404.03626).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.compress.range_coder import quantise
from jaxlm.compress.rational import Frequencies
from jaxlm.core.config import require

PRIME = 32749  # the largest below 2^15: every symbol fits in a window of 16 bits, and boundaries are not those of cells


class ContextModel:
    """Frequencies after the last ``order`` symbols; made by `train`.

    It is a `rational.CoderModel`; its method `batch` is a `range_coder.BatchModel` of the same integers.

    Attributes:
      order: k >= 0.
      size: V, the number of symbols.
      total: the sum of every row.
      frequencies: int64 [contexts, V].
    """

    def __init__(self, order: int, size: int, total: int, keys: Sequence[NDArray[np.int64]], rows: NDArray[np.int64]):
        """``keys[j]``: the contexts of j symbols in rising order, the last symbol as the lowest digit in base V."""
        self.order, self.size, self.total, self.frequencies = order, size, total, rows
        self._keys = list(keys)
        self._first = np.cumsum([0, *(len(k) for k in keys)]).tolist()
        self._made: dict[int, Frequencies] = {}
        self._row = {
            (j, key): self._first[j] + i for j, level in enumerate(keys) for i, key in enumerate(level.tolist())
        }

    @classmethod
    def train(cls, texts: Iterable[Sequence[int]], order: int = 2, size: int = 256, total: int = PRIME) -> Self:
        """Counts ``texts`` (``bytes`` or ints in 0..size-1); none is fine, and leaves the uniform model.

        Raises `ConfigError` for a symbol outside 0..size-1, contexts beyond 63 bits, and a total below the size.
        """
        require(order >= 0 and size >= 1, f"ContextModel: expected order >= 0 and size >= 1, got {order} and {size}")
        require(size ** (order + 1) < 1 << 63, f"ContextModel: {size}^{order + 1} contexts do not fit in 63 bits")
        arrays = [np.asarray(list(text), np.int64) for text in texts]
        for number, array in enumerate(arrays):
            bad = array[(array < 0) | (array >= size)]
            require(not bad.size, f"text {number}: symbol {bad[:1].tolist()} is outside 0..{size - 1}")
        keys, levels, lower = [], [], np.full((1, size), 1 / size)
        for j in range(order + 1):
            seen = np.concatenate([np.zeros(0, np.int64), *(_contexts(a, j, size) * size + a[j:] for a in arrays)])
            pairs, counts = np.unique(seen, return_counts=True)
            contexts, row = np.unique(pairs // size, return_inverse=True)
            n = np.zeros((len(contexts), size))
            n[row, pairs % size] = counts
            if j == 0 and not len(contexts):
                contexts, n = np.zeros(1, np.int64), np.zeros((1, size))
            below = lower[np.searchsorted(keys[-1], contexts % size ** (j - 1)) if j else np.zeros(len(contexts), int)]
            different = np.count_nonzero(n, axis=-1, keepdims=True)
            known = n.sum(-1, keepdims=True) + different
            lower = np.where(known > 0, (n + different * below) / np.maximum(known, 1), below)
            keys.append(contexts)
            levels.append(lower)
        return cls(order, size, total, keys, np.concatenate([quantise(level, total) for level in levels]))

    def __call__(self, prefix: Sequence[int]) -> Frequencies:
        """The frequencies after a prefix of any length."""
        j, key = 0, 0
        row = self._row[0, 0]
        while j < min(self.order, len(prefix)):
            key += int(prefix[-1 - j]) * self.size**j
            j += 1
            if (j, key) not in self._row:  # then no longer one was seen either
                break
            row = self._row[j, key]
        if row not in self._made:
            self._made[row] = Frequencies(self.frequencies[row].tolist())
        return self._made[row]

    def batch(self, prefixes: NDArray[np.int32]) -> NDArray[np.int64]:
        """Frequencies [B, V] after prefixes [B, t]."""
        rows = np.zeros(len(prefixes), np.int64)
        key = np.zeros(len(prefixes), np.int64)
        for j in range(1, min(self.order, prefixes.shape[1]) + 1):
            key += prefixes[:, -j].astype(np.int64) * self.size ** (j - 1)
            level = self._keys[j]
            if not len(level):
                break
            at = np.minimum(np.searchsorted(level, key), len(level) - 1)
            rows = np.where(level[at] == key, self._first[j] + at, rows)
        return self.frequencies[rows]


def _contexts(symbols: NDArray[np.int64], order: int, size: int) -> NDArray[np.int64]:
    """The keys of the ``order`` symbols before each of ``symbols[order:]``."""
    length = max(len(symbols) - order, 0)
    out = np.zeros(length, np.int64)
    for j in range(order):
        out += symbols[order - 1 - j : order - 1 - j + length] * size**j
    return out
