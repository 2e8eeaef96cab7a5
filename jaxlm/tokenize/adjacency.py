r"""Which token may stand behind which in an encoding by plain byte pair encoding.

A sequence of tokens is the encoding of its own text if and only if each token is the encoding of its bytes and any two
neighbours are that of theirs (tests/tokenize/test_adjacency.py holds this against brute force). And of two neighbours
u v it can be told from the merge list alone. Merging goes by rank, so a token inside u lives from its own rank to the
rank of the one that takes it up. While the last token inside u is a and the first inside v is b, nothing may join them:

    u v is no encoding  <=>  some merge (a, b) of rank r has   a on the right edge of u's tree, taken up after r,
                                                               b on the left edge of v's tree, taken up at r or after

(at equal ranks the left pair is merged first). Rules that cut text by the two bytes around the cut alone only make more
neighbours valid: `space`, `lines`, `whitespace` of `jaxlm.tokenize.pretokens`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.hf import FILE, HfTokenizer

NEVER = 2**31 - 1  # a rank after all others
_SPACES = b" \t\n\r\f\v"


@dataclasses.dataclass(frozen=True)
class Adjacency:
    """The rule for a vocabulary of V ids, as arrays.

    Attributes:
      usable: bool [V], tokens that some text is encoded with; the others (special ones, dead merges) never stand.
      first_byte, last_byte: uint8 [V].
      cut: bool [256, 256], whether text is cut between two bytes.
      edge: int32 [S, V], the tokens on the left edge of each token's tree, itself first, V where there are fewer.
      until: int32 [S, V], the rank of the merge that takes each of them up; `NEVER` for the token itself.
      start: int32 [V + 2]; id V stands for the beginning of a text, where every token may stand.
      partner, rank: int32 [E]; ``start[u]:start[u + 1]`` are the tokens b, and the merges' ranks, that the right edge
        of u is joined with if b comes while that token lives.
    """

    usable: NDArray[np.bool_]
    first_byte: NDArray[np.uint8]
    last_byte: NDArray[np.uint8]
    cut: NDArray[np.bool_]
    edge: NDArray[np.int32]
    until: NDArray[np.int32]
    start: NDArray[np.int32]
    partner: NDArray[np.int32]
    rank: NDArray[np.int32]

    def after(self, token: int | None) -> NDArray[np.bool_]:
        """bool [V]: the tokens that may stand behind one; None for the beginning of a text."""
        if token is None:
            return self.usable
        joined = np.full(len(self.usable) + 1, NEVER, np.int64)
        own = slice(self.start[token], self.start[token + 1])
        np.minimum.at(joined, self.partner[own], self.rank[own])
        met = joined[self.edge]
        wrong = ((met <= self.until) & (met < NEVER)).any(0)
        return self.usable & (~wrong | self.cut[self.last_byte[token], self.first_byte])


def adjacency_of(tokenizer: Tokenizer) -> Adjacency | None:
    """The rule of a tokenizer; None if it is not plain byte pair encoding.

    That is `byte`, `bpe` with no rules or such as are named above, and `hf` files of byte-level BPE without normalizer
    and expression. Look-ahead, digits in groups and all other methods are not.
    """
    cut = np.zeros((256, 256), bool)
    if isinstance(tokenizer, HfTokenizer):
        trees = _hf_merges(tokenizer)
    elif tokenizer.name == "byte":
        trees = {}
    elif tokenizer.name == "bpe":
        bpe: Any = tokenizer
        ids = bpe.symbol_ids.tolist()
        trees = {ids[256 + i]: (ids[left], ids[right], i) for i, (left, right) in enumerate(bpe.merges)}
        for rule in bpe.split:
            known = _cuts(rule)
            if known is None:
                return None
            cut |= known
    else:
        return None
    return None if trees is None else _build(tokenizer, trees, cut)


def _cuts(rule: str) -> NDArray[np.bool_] | None:
    """Between which two bytes a rule cuts, if that is all it looks at."""
    cut = np.zeros((256, 256), bool)
    if rule == "space":
        cut[:, ord(" ")] = True
    elif rule == "lines":
        cut[ord("\n"), :] = True
    elif rule == "whitespace":
        space = np.isin(np.arange(256), list(_SPACES))
        cut = space[:, None] != space
    else:
        return None
    return cut


def _hf_merges(tokenizer: HfTokenizer) -> dict[int, tuple[int, int, int]] | None:
    """id -> (left, right, rank) of the merges in a file; None if it does more than merge bytes by rank."""
    file = tokenizer._files[FILE]
    model, before = file["model"], file.get("pre_tokenizer") or {}
    plain = (
        model.get("type") == "BPE"
        and not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and not model.get("ignore_merges")
        and file.get("normalizer") is None
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space")
        and before.get("use_regex") is False
        and all(added["special"] for added in file.get("added_tokens") or [])
    )
    if not plain:
        return None
    ids: Mapping[str, int] = model["vocab"]
    trees: dict[int, tuple[int, int, int]] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        new, parts = ids[left + right], (ids[left], ids[right])
        ranks = [trees[part][2] if part in trees else -1 for part in parts]
        if new in trees or any(len(text) > 1 and i not in trees for text, i in zip((left, right), parts, strict=True)):
            return None  # made in two ways, or of something made later: ranks are then not an order of merging
        if max(ranks) >= rank:
            return None
        trees[new] = (*parts, rank)
    return trees


def _build(tokenizer: Tokenizer, trees: Mapping[int, tuple[int, int, int]], cut: NDArray[np.bool_]) -> Adjacency:
    pieces, size = tokenizer.token_bytes, tokenizer.vocab_size
    by_left: dict[int, list[tuple[int, int]]] = {}
    for left, right, rank in trees.values():
        by_left.setdefault(left, []).append((right, rank))
    usable = np.array([bool(p) and tokenizer.encode(p).tolist() == [i] for i, p in enumerate(pieces)], bool)
    require(usable.any(), f"tokenizer {tokenizer.name!r} has no token that encodes its own bytes")
    edges: list[list[tuple[int, int]]] = []
    start, partner, rank = [0], [], []
    for token in range(size):
        edges.append(_edge(trees, token, 0))
        for inside, until in _edge(trees, token, 1):
            for other, joined in by_left.get(inside, ()):
                if joined < until:
                    partner.append(other)
                    rank.append(joined)
        start.append(len(partner))
    deepest = max(map(len, edges))
    edge, until = np.full((deepest, size), size, np.int32), np.full((deepest, size), -1, np.int32)
    for token, own in enumerate(edges):
        edge[: len(own), token], until[: len(own), token] = zip(*own, strict=True)
    return Adjacency(
        usable=usable,
        first_byte=np.array([piece[0] if piece else 0 for piece in pieces], np.uint8),
        last_byte=np.array([piece[-1] if piece else 0 for piece in pieces], np.uint8),
        cut=cut,
        edge=edge,
        until=until,
        start=np.array([*start, start[-1]], np.int32),
        partner=np.array(partner, np.int32),
        rank=np.array(rank, np.int32),
    )


def _edge(trees: Mapping[int, tuple[int, int, int]], token: int, side: int) -> list[tuple[int, int]]:
    """The tokens down one edge of a token's tree, each with the rank of the merge that takes it up."""
    found, until = [(token, NEVER)], NEVER
    while token in trees:
        until, token = trees[token][2], trees[token][side]
        found.append((token, until))
    return found
