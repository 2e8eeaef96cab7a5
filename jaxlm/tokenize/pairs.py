"""Counts of adjacent pairs, kept while merges are applied (Sennrich et al. 2016, byte pair encoding).

    counts[a, b] = sum over words of weight * #{t : word[t] = a, word[t+1] = b}

Overlapping positions count ("aaa" has two pairs), and a merge replaces left to right without overlap ("aaa" becomes
"Xa"). The words lie behind one another as linked lists, and an index has the places where a pair was made, so a merge
costs its own occurrences whatever the length of the words: 4096 merges of 0.5 MB of code take 0.7 CPU-seconds if
split at spaces, 2.1 if every file is a word (results/benchmark/tokenize.txt).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import shown


class PairCounts:
    """Adjacent pairs of weighted words under merges.

    Attributes:
      counts: (left id, right id) -> weighted number of adjacent positions now; only pairs that occur.
    """

    def __init__(self, words: Mapping[tuple[int, ...], int]) -> None:
        """``words``: sequences of ids with their weights. Raises `ConfigError` for a negative weight."""
        ids: list[int] = []
        starts: list[int] = []
        weights: list[int] = []
        for word, weight in words.items():
            require(weight >= 0, f"the weight of the word {shown(word)} is {weight}; weights are 0 or more")
            if word and weight:
                starts.append(len(ids))
                weights.append(weight)
                ids += word
        size = len(ids)
        self._ids = ids
        self._starts = starts
        lengths = np.diff(np.array([*starts, size], np.int64))
        self._weight: list[int] = np.repeat(np.array(weights, object), lengths).tolist()
        places = list(range(size))  # one object for each place, shared by the lists below
        self._next = [*places[1:], -1] if size else []
        self._previous = [-1, *places[:-1]] if size else []
        for start in starts:
            self._previous[start] = -1
            self._next[start - 1] = -1
        self.counts: dict[tuple[int, int], int] = {}
        # pair -> places of its left half, each ascending run appended as it was made; some no longer hold
        self._places: dict[tuple[int, int], list[int]] = {}
        for place, following, left, weight in zip(places, self._next, ids, self._weight, strict=True):
            if following >= 0:
                pair = left, ids[following]
                if pair in self._places:
                    self.counts[pair] += weight
                    self._places[pair].append(place)
                else:
                    self.counts[pair] = weight
                    self._places[pair] = [place]

    def merge(self, left: int, right: int, new: int) -> dict[tuple[int, int], int]:
        """Replaces every ``left right`` by ``new``, in each word left to right without overlap.

        Returns the pairs whose count changed with their new count (0: vanished, and no longer in `counts`).
        """
        ids, following, previous, weights, index = self._ids, self._next, self._previous, self._weight, self._places
        changes: dict[tuple[int, int], int] = {}
        places = index.pop((left, right), [])
        places.sort()
        for place in places:
            after = following[place]
            if after < 0 or ids[place] != left or ids[after] != right:
                continue
            weight = weights[place]
            pair = left, right
            changes[pair] = changes.get(pair, 0) - weight
            before = previous[place]
            if before >= 0:
                pair = ids[before], left
                changes[pair] = changes.get(pair, 0) - weight
                pair = ids[before], new
                changes[pair] = changes.get(pair, 0) + weight
                if pair in index:
                    index[pair].append(before)
                else:
                    index[pair] = [before]
            beyond = following[after]
            if beyond >= 0:
                pair = right, ids[beyond]
                changes[pair] = changes.get(pair, 0) - weight
                pair = new, ids[beyond]
                changes[pair] = changes.get(pair, 0) + weight
                if pair in index:
                    index[pair].append(place)
                else:
                    index[pair] = [place]
                previous[beyond] = place
            following[place] = beyond
            ids[place] = new
            ids[after] = -1  # nothing begins here any more
            following[after] = -1
        changed = {}
        for pair, change in changes.items():
            if change:
                count = self.counts.get(pair, 0) + change
                changed[pair] = count
                if count:
                    self.counts[pair] = count
                else:
                    self.counts.pop(pair, None)
                    index.pop(pair, None)
        return changed

    def words(self) -> list[tuple[int, ...]]:
        """The words of positive weight as they are now, in the order they were given."""
        found = []
        for place in self._starts:
            word = []
            while place >= 0:
                word.append(self._ids[place])
                place = self._next[place]
            found.append(tuple(word))
        return found
