"""Merge lists of byte pair encoding: learned, applied, and looked through (Sennrich et al. 2016).

Ids 0-255 are the bytes and merge i makes id 256 + i out of two earlier ids, so a pair of lower rank never appears by
merging one of higher rank, and the order of ids is the order of merging.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxlm.core.config import require
from jaxlm.tokenize.base import BYTES
from jaxlm.tokenize.pairs import PairCounts
from jaxlm.tokenize.pretokens import split

Pair = tuple[int, int]
_SHORT = 16  # up to here looking at every pair again is faster than keeping an order
_CACHED_PIECES, _CACHED_LENGTH = 1 << 16, 64  # most pieces of text are short and come again


class Step(NamedTuple):
    """A merge that was learned.

    Attributes:
      left, right: the ids it joins.
      count: the weighted count of the pair, before it was merged.
      top: the first pairs at this moment as (left, right, count), itself the first, if they were asked for.
    """

    left: int
    right: int
    count: int
    top: tuple[tuple[int, int, int], ...] = ()


def learn(
    words: Mapping[tuple[int, ...], int],
    steps: int,
    *,
    first: int = BYTES,
    top: int = 0,
    minimum: int = 1,
    allowed: Callable[[int, int], bool] | None = None,
) -> Iterator[Step]:
    """Merges of the most frequent pair, one after another; ties go to the smallest (left id, right id).

    Args:
      words: sequences of ids with their weights; pairs are counted and merged inside of them.
      steps: the most merges; there are fewer if pairs run out.
      first: the id of the first merge.
      top: how many pairs to give with each step, among which ties are ordered in the same way.
      minimum: pairs that are rarer are not merged.
      allowed: whether a pair may be merged at all; asked once or more for a pair, always with the same answer.
    """
    pairs = PairCounts(words)
    heap = [(-count, *pair) for pair, count in pairs.counts.items()]
    heapq.heapify(heap)
    for new in range(first, first + steps):
        leaders = _leaders(heap, pairs.counts, max(top, 1), allowed)
        if not leaders or leaders[0][2] < minimum:
            return
        left, right, count = leaders[0]
        yield Step(left, right, count, tuple(leaders[:top]))
        for leader, rival, rivals in leaders[1:]:
            heapq.heappush(heap, (-rivals, leader, rival))
        for pair, changed in pairs.merge(left, right, new).items():
            if changed:
                heapq.heappush(heap, (-changed, *pair))


def _leaders(
    heap: list[tuple[int, int, int]],
    counts: dict[Pair, int],
    number: int,
    allowed: Callable[[int, int], bool] | None,
) -> list[tuple[int, int, int]]:
    """Takes the first pairs out of a heap in which counts may be outdated."""
    found: list[tuple[int, int, int]] = []
    while heap and len(found) < number:
        negative, left, right = heapq.heappop(heap)
        if counts.get((left, right)) != -negative or (found and found[-1] == (left, right, -negative)):
            continue
        if allowed is None or allowed(left, right):
            found.append((left, right, -negative))
    return found


def apply(ids: Sequence[int], ranks: Mapping[Pair, int]) -> list[int]:
    """Merges ids as long as a pair has a rank: the lowest one first, all its occurrences from left to right.

    ``ranks`` are those of a merge list, whose order of ids is the order of merging. Short sequences are searched for
    the best pair again and again; of long ones the places of every rank are kept, and the time is linear.
    """
    if len(ids) <= _SHORT:
        return _apply_short(list(ids), ranks)
    return _apply_long(list(ids), ranks)


def _apply_short(ids: list[int], ranks: Mapping[Pair, int]) -> list[int]:
    nothing = 1 << 60  # above every rank
    while len(ids) > 1:
        found = [ranks.get(pair, nothing) for pair in zip(ids, ids[1:])]  # noqa: B905
        best = min(found)
        if best == nothing:
            break
        place = found.index(best)
        left, right = ids[place], ids[place + 1]
        merged = ids[:place]
        while place < len(ids):
            if ids[place] == left and place + 1 < len(ids) and ids[place + 1] == right:
                merged.append(BYTES + best)
                place += 2
            else:
                merged.append(ids[place])
                place += 1
        ids = merged
    return ids


def _apply_long(ids: list[int], ranks: Mapping[Pair, int]) -> list[int]:
    size = len(ids)
    places = list(range(size))
    following = [*places[1:], -1]
    previous = [-1, *places[:-1]]
    where: dict[int, list[int]] = {}  # rank -> places of its left half, some of which no longer hold
    for place, pair in zip(places, zip(ids, ids[1:])):  # noqa: B905
        rank = ranks.get(pair)
        if rank is not None:
            where.setdefault(rank, []).append(place)
    waiting = list(where)
    heapq.heapify(waiting)
    while waiting:
        rank = heapq.heappop(waiting)
        new = BYTES + rank
        for place in where.pop(rank):  # in order: all were found while the later of the pair's two ids was made
            after = following[place]
            if after < 0 or ranks.get((ids[place], ids[after])) != rank:
                continue
            beyond, before = following[after], previous[place]
            ids[place], ids[after], following[place], following[after] = new, -1, beyond, -1
            if beyond >= 0:
                previous[beyond] = place
                made = ranks.get((new, ids[beyond]))
                if made is not None:
                    if made in where:
                        where[made].append(place)
                    else:
                        where[made] = [place]
                        heapq.heappush(waiting, made)
            if before >= 0:
                made = ranks.get((ids[before], new))
                if made is not None:
                    if made in where:
                        where[made].append(before)
                    else:
                        where[made] = [before]
                        heapq.heappush(waiting, made)
    return [i for i in ids if i >= 0]


def apply_to_pieces(
    data: bytes, rules: Sequence[str], ranks: Mapping[Pair, int], cache: dict[bytes, list[int]]
) -> list[int]:
    """The ids of ``data``: cut by rules (`jaxlm.tokenize.pretokens`), each piece merged, and kept in ``cache``."""
    ids: list[int] = []
    for piece in split(data, rules):
        found = cache.get(piece)
        if found is None:
            found = apply(piece, ranks)
            if len(piece) <= _CACHED_LENGTH:
                if len(cache) >= _CACHED_PIECES:
                    cache.clear()
                cache[piece] = found
        ids += found
    return ids


def ranks_of(merges: Sequence[Pair]) -> dict[Pair, int]:
    """pair of ids -> number of its merge."""
    return {pair: rank for rank, pair in enumerate(merges)}


def bytes_of(merges: Sequence[Pair]) -> list[bytes]:
    """The bytes of the 256 bytes and of every merge, in the order of ids."""
    table = [bytes([byte]) for byte in range(BYTES)]
    for left, right in merges:
        table.append(table[left] + table[right])
    return table


def check(merges: Sequence[Pair], where: str) -> None:
    """Raises `ConfigError`, beginning with ``where``, if a merge does not join two earlier ids or is there twice."""
    seen: dict[Pair, int] = {}
    for i, (left, right) in enumerate(merges):
        if not (0 <= left < BYTES + i and 0 <= right < BYTES + i):
            require(False, f"{where}[{i}]: joins {left} and {right}, but may join ids 0..{BYTES + i - 1}")
        first = seen.setdefault((left, right), i)
        require(first == i, f"{where}[{i}]: joins {left} and {right} as {where}[{first}] does")


def number_of_merges(vocab_size: int | None, specials: Sequence[str]) -> int:
    """The merges of a vocabulary. Raises `ConfigError` for a size that is missing or below bytes and special tokens."""
    least = BYTES + len(specials)
    require(vocab_size is not None, f"say vocab_size: {least} (bytes and special tokens) and one for each merge")
    steps = (vocab_size or 0) - least
    require(steps >= 0, f"vocab_size {vocab_size} is below the {least} bytes and special tokens")
    return steps


def require_all(learned: int, steps: int, specials: Sequence[str]) -> None:
    """Raises `ConfigError` if fewer merges were learned than asked for."""
    least = BYTES + len(specials)
    require(
        learned >= steps,
        f"these texts have pairs for {learned} merges, not {steps}; train on more, or vocab_size <= {least + learned}",
    )
