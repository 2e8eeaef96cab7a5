"""Byte pair encoding with merges left out at random (Provilkov et al. 2020, BPE-Dropout).

At every step each place where a merge applies is dropped with probability p, independently; of the places that survive
those of the lowest rank are merged, and the drops are drawn afresh; if none survives, the word is done.

    all_surviving    the surviving places of that rank are merged from left to right, skipping one that overlaps the one
                     just merged: the authors' code
    single           only the leftmost of them

p = 0 is the encoding of the tokenizer, p = 1 leaves bytes; the authors train with 0.1. The library tokenizers has a
``dropout`` that takes places out of a queue without drawing again, which is another distribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import choose, shown
from jaxlm.tokenize.base import BYTES, as_bytes
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.merges import Pair, ranks_of
from jaxlm.tokenize.pretokens import split

RULES = ("all_surviving", "single")


def encode(
    tokenizer: BpeTokenizer, text: str | bytes, p: float, rng: np.random.Generator, rule: str = "all_surviving"
) -> NDArray[np.int32]:
    """One sample of the ids of a text, int32 [n]; the same state of ``rng`` gives the same ids.

    Every piece of the tokenizer's splitting is drawn by itself, in time that grows with the square of its length.
    Raises `ConfigError` for p outside 0..1, an unknown rule, and anything but a generator of numpy.
    """
    _check(p, rule)
    require(isinstance(rng, np.random.Generator), f"rng: expected a numpy.random.Generator, got {shown(rng)}")
    ids: list[int] = []
    for piece in split(as_bytes(text), tokenizer.split):
        ids += sample(piece, tokenizer.ranks, p, rng, rule)
    return tokenizer.symbol_ids[np.array(ids, np.int32)]


def sample(
    ids: Sequence[int], ranks: Mapping[Pair, int], p: float, rng: np.random.Generator, rule: str = "all_surviving"
) -> list[int]:
    """One sample of the ids of a word (its bytes, say), by the ranks of pairs of ids."""
    word = list(ids)
    while places := _places(word, ranks):
        kept = rng.random(len(places)) >= p
        surviving = [place for place, keep in zip(places, kept, strict=True) if keep]
        if not surviving:
            break
        best = min(rank for rank, _ in surviving)
        chosen = [place for rank, place in surviving if rank == best]
        word = _merged(word, chosen[:1] if rule == "single" else chosen, BYTES + best)
    return word


def distribution(
    merges: Sequence[Pair], word: Sequence[int], p: float | Fraction, rule: str = "all_surviving"
) -> dict[tuple[int, ...], float]:
    """Every encoding of a word with its probability, exactly; of a p that is a `Fraction`, fractions.

    It visits every state that can be reached: for words, not for texts. Raises `ConfigError` as `encode` does.
    """
    _check(p, rule)
    drop: Any = p
    ranks = ranks_of(merges)
    known: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}

    def ends(state: tuple[int, ...]) -> dict[tuple[int, ...], float]:
        if state in known:
            return known[state]
        places = _places(state, ranks)
        total = {state: drop ** len(places)}
        for best in sorted({rank for rank, _ in places}):
            group = [place for rank, place in places if rank == best]
            lower = sum(rank < best for rank, _ in places)
            for chosen, probability in _survivors(group, drop, rule):
                weight = drop**lower * probability
                if weight:
                    for end, share in ends(tuple(_merged(state, chosen, BYTES + best))).items():
                        total[end] = total.get(end, 0) + weight * share
        known[state] = {end: share for end, share in total.items() if share}
        return known[state]

    return ends(tuple(word))


def _survivors(group: list[int], p: Any, rule: str) -> Iterator[tuple[list[int], Any]]:
    """(places that are merged, probability) for every way in which some of a rank's places survive."""
    if rule == "single":
        for i, place in enumerate(group):
            yield [place], p**i * (1 - p)
        return
    for kept in itertools.product((True, False), repeat=len(group)):
        if any(kept):
            yield list(itertools.compress(group, kept)), (1 - p) ** sum(kept) * p ** (len(kept) - sum(kept))


def _places(word: Sequence[int], ranks: Mapping[Pair, int]) -> list[tuple[int, int]]:
    """(rank, place of the left half) wherever a merge applies, from left to right."""
    found = [(ranks.get(pair), place) for place, pair in enumerate(itertools.pairwise(word))]
    return [(rank, place) for rank, place in found if rank is not None]


def _merged(word: Sequence[int], places: Sequence[int], new: int) -> list[int]:
    merged: list[int] = []
    done = 0
    for place in places:
        if place >= done:
            merged += [*word[done:place], new]
            done = place + 2
    return [*merged, *word[done:]]


def _check(p: Any, rule: str) -> None:
    require(0 <= p <= 1, f"the probability of dropping a merge is between 0 and 1, not {shown(p)}")
    choose("rule of BPE-dropout", rule, RULES)
