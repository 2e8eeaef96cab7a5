"""Every substring of a list of words at once, in arrays: the lattice that unigram and PathPiece training walk.

The words are sorted by length, longest first, and laid out position by position: layer j has one node for each word of
at least j symbols, in that order, so the words of layer j are the first of layer j - k. A node is where a substring
ends:

    ids[k - 1, node]    the substring of k symbols that ends there, -1 if it would begin before the word or is too rare

so a dynamic programme over all words is a loop over layers and widths of operations on slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST = 256  # symbols; longer words are cut, which bounds the number of layers


class Substrings:
    """The substrings of weighted words up to a length.

    Attributes:
      pieces: the substrings by id, those of one symbol first, then by length; bytes or text like the words.
      lengths: int64 [S], their numbers of symbols.
      counts: int64 [S], weighted numbers of places where they occur.
      places: int64 [S], a node where each ends.
      weights: int64 [W], the words' weights in the order of the layers.
      layers: (first node, number of words) of each layer; layer 0 is before the first symbol.
      ids: int32 [max_length, nodes], see above.
      last: int64 [W], the node where each word ends.
      layer_of, word_of: int64 [nodes], the layer and the word of a node.
      previous, next: int64 [nodes], the node before and behind in the word; node 0 and one past the last where none is.
    """

    def __init__(
        self, words: Mapping[bytes, int] | Mapping[str, int], max_length: int, least: int = 2, longest: int = LONGEST
    ) -> None:
        """Substrings of two symbols or more that occur fewer than ``least`` times are left out."""
        parts: dict[Sequence, int] = {}
        for word, weight in words.items():
            for at in range(0, len(word), longest):
                part = word[at : at + longest]
                parts[part] = parts.get(part, 0) + weight
        order = sorted(parts, key=len, reverse=True)
        self.weights = np.array([parts[word] for word in order], np.int64)
        sizes = np.array([len(word) for word in order], np.int64)
        depth = int(sizes[0]) if len(order) else 0
        alive = np.searchsorted(-sizes, -np.arange(depth + 1), side="right")
        first = np.concatenate([[0], np.cumsum(alive)])
        self._first = first[:-1]
        self.layers = [(int(first[j]), int(alive[j])) for j in range(depth + 1)]
        nodes = int(first[-1])
        self.layer_of = np.repeat(np.arange(depth + 1), alive)
        self.word_of = np.arange(nodes) - first[self.layer_of]
        self.previous = np.where(self.layer_of > 0, first[self.layer_of - 1] + self.word_of, 0)
        self.last = first[sizes] + np.arange(len(order))
        # The next node of a word, or one past the last node.
        self.next = np.full(nodes, nodes, np.int64)
        self.next[self.previous[self.layer_of > 0]] = np.flatnonzero(self.layer_of > 0)

        symbols = np.zeros(nodes, np.int64)
        for at, word in enumerate(order):
            values = list(word) if isinstance(word, bytes) else [ord(c) for c in word]
            symbols[first[1 : len(values) + 1] + at] = values
        self._fill(symbols, max_length, least)
        text = len(order) > 0 and isinstance(order[0], str)
        self.pieces = self._spell("" if text else b"", chr if text else lambda value: bytes([value]))

    def _fill(self, symbols: NDArray[np.int64], max_length: int, least: int) -> None:
        nodes = len(symbols)
        self.ids = np.full((max_length, nodes), -1, np.int32)
        weight = self.weights[self.word_of] if nodes else np.zeros(0, np.int64)
        counts, lengths, parents, ends, places = [], [], [], [], []
        size = 0
        for k in range(1, max_length + 1):
            before = self.ids[k - 2, self.previous] if k > 1 else np.zeros(nodes, np.int32)
            here = np.flatnonzero((self.layer_of >= k) & (before >= 0))
            if not len(here):
                break
            keys = before[here].astype(np.int64) * (1 << 21) + symbols[here]  # a symbol is below 2^21
            unique, at, inverse = np.unique(keys, return_index=True, return_inverse=True)
            count = np.bincount(inverse, weight[here], len(unique)).astype(np.int64)
            kept = (count >= least) | (k == 1)
            new = np.where(kept, size + np.cumsum(kept) - 1, -1)
            self.ids[k - 1, here] = new[inverse]
            counts.append(count[kept])
            lengths.append(np.full(kept.sum(), k))
            parents.append((unique >> 21)[kept])
            ends.append((unique & ((1 << 21) - 1))[kept])
            places.append(here[at[kept]])
            size += int(kept.sum())
        joined = lambda arrays: np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)
        self.counts, self.lengths, self._parents, self._ends = map(joined, (counts, lengths, parents, ends))
        self.places = joined(places)

    def _spell(self, empty, symbol) -> list:
        pieces: list = []
        for length, parent, end in zip(self.lengths.tolist(), self._parents.tolist(), self._ends.tolist(), strict=True):
            pieces.append((pieces[parent] if length > 1 else empty) + symbol(end))
        return pieces

    def start(self, node: NDArray[np.int64], width: NDArray[np.int64]) -> NDArray[np.int64]:
        """The node before the substrings of ``width`` symbols that end at ``node``."""
        return self._first[self.layer_of[node] - width] + self.word_of[node]
