"""Merges chosen for one batch (Feher et al. 2024, Retrofitting Large Language Models with Dynamic Tokenization).

The batch is tokenized as ever; then the most frequent adjacent pair of tokens becomes one token in the whole batch,
again and again, never across a word. Tokens are what they spell (an embedding is made of that, by a hypernetwork or as
the mean of the pieces), so a merge may give a token that the vocabulary has. Ties go to the smaller pair in the order
of strings.

Claimed: encoders read more than 20 % fewer tokens over 14 languages at a loss below 2 %.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from jaxlm.core.config import require
from jaxlm.tokenize.pairs import PairCounts

Token = TypeVar("Token", str, bytes)


class Merged(NamedTuple):
    """What `dynamic_merges` gives: the merges as (left, right, count), and the batch after them."""

    merges: list
    batch: list


def dynamic_merges(batch: Sequence[Sequence[Sequence[Token]]], steps: int, minimum: int = 2) -> Merged:
    """Merges tokens of a batch: texts of words of tokens, each token `str` or each `bytes`, none empty.

    Args:
      batch: nested [texts][words][tokens].
      steps: the most merges; there are fewer once no pair occurs ``minimum`` times.
      minimum: the least count of a merge.
    """
    ids: dict[Token, int] = {}
    for text in batch:
        for word in text:
            for token in word:
                require(token, "a token of the batch is empty; every token spells something")
                ids.setdefault(token, len(ids))
    tokens = list(ids)
    words = Counter(tuple(ids[token] for token in word) for text in batch for word in text if len(word))
    pairs = PairCounts(words)
    waiting = [(-count, tokens[left], tokens[right]) for (left, right), count in pairs.counts.items()]
    heapq.heapify(waiting)
    merges = []
    while waiting and len(merges) < steps:
        negative, left, right = heapq.heappop(waiting)
        if pairs.counts.get((ids[left], ids[right])) != -negative:
            continue
        if -negative < minimum:
            break
        merges.append((left, right, -negative))
        new = ids.setdefault(left + right, len(ids))
        if new == len(tokens):
            tokens.append(left + right)
        for pair, count in pairs.merge(ids[left], ids[right], new).items():
            if count:
                heapq.heappush(waiting, (-count, tokens[pair[0]], tokens[pair[1]]))
    after = dict(zip(words, pairs.words(), strict=True))
    return Merged(
        merges,
        [[[tokens[i] for i in after.get(tuple(ids[token] for token in word), ())] for word in text] for text in batch],
    )
