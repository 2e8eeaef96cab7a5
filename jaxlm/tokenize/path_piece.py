"""PathPiece: the fewest tokens that a vocabulary allows (Schmidt et al. 2024, Tokenization Is More Than Compression).

Encoding is a shortest path over byte positions, O(n L) for n bytes and pieces of at most L:

    fewest(e) = 1 + min over widths w with data[e - w : e] in the vocabulary of fewest(e - w)

Of equally short paths `encode` keeps, at every end, the longest last token (PathPiece-L); `sample` chooses among the
tied widths uniformly (PathPiece-R), which reaches every shortest path but not all equally often. With the same
splitting and vocabulary it never needs more tokens than BPE or any other method.

Training goes from the top down: from all frequent substrings, the pieces whose loss would cost the fewest tokens are
dropped, round by round. A piece that a shortest path uses from s to e costs the smaller of

    min over breaks s < b < e of      fewest(b) + rest(b)          - shortest
    min over wider pieces [i, j] of   fewest(i) + 1 + rest(j)      - shortest

each occurrence by itself (the paper's estimate). Claimed: fewer tokens do not make a better model.
0.5 MB of code, CPU-seconds (results/benchmark/tokenize.txt): 4096 ids in 1.4, encoding 0.25.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.tokenize.base import BYTES, as_bytes, as_text
from jaxlm.tokenize.pieces import SPECIALS, PieceTokenizer, enough, room_for_pieces
from jaxlm.tokenize.pretokens import rule_of, word_counts
from jaxlm.tokenize.pretokens import split as cut
from jaxlm.tokenize.substrings import Substrings
from jaxlm.tokenize.trie import Trie

_FAR = np.int32(1 << 29)  # more tokens than any word has


@dataclasses.dataclass(frozen=True)
class PathPieceTokenizer(PieceTokenizer):
    """Fewest tokens inside every pre-token.

    Attributes:
      split: rules of `jaxlm.tokenize.pretokens`; ``()`` for paths over the whole text.
    """

    name: ClassVar[str] = "path_piece"
    paper: ClassVar[str] = "Schmidt et al. 2024, Tokenization Is More Than Compression"

    split: tuple[str, ...] = ("space",)

    def check(self) -> None:
        super().check()
        for rule in self.split:
            rule_of(rule)

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes] = (),
        vocab_size: int | None = None,
        *,
        specials: tuple[str, ...] = SPECIALS,
        split: tuple[str, ...] = ("space",),
        max_length: int = 16,
        keep: float = 0.75,
    ) -> Self:
        """Top-down pruning from all substrings of 2 to ``max_length`` bytes that occur twice, a share ``keep`` a round.

        Raises `ConfigError` if there are fewer such substrings than ``vocab_size`` asks for.
        """
        room = room_for_pieces(cls.name, vocab_size, len(specials))
        require(max_length > 1, f"max_length must be 2 or more, got {max_length}")
        require(0 < keep < 1, f"keep must be between 0 and 1, got {keep}")
        lattice = Substrings(word_counts(texts, split), max_length)
        enough(cls.name, int((lattice.lengths > 1).sum()), room, len(specials))
        active = np.append(np.ones(len(lattice.pieces), bool), False)  # the last is for id -1
        fixed = lattice.lengths == 1
        while (size := int(active.sum() - fixed.sum())) > room:
            cost = increases(lattice, active)
            # Of equal costs the rarer goes first, then the longer, then the later.
            candidates = np.flatnonzero(active[:-1] & ~fixed)
            counts, lengths = lattice.counts[candidates], lattice.lengths[candidates]
            order = np.lexsort((-candidates, -lengths, counts, cost[candidates]))
            active[candidates[order[: size - max(room, int(keep * size))]]] = False
        chosen = np.flatnonzero(active[:-1] & ~fixed)
        chosen = chosen[np.lexsort((chosen, -lattice.counts[chosen]))]
        return cls(tuple(as_text(lattice.pieces[i]) for i in chosen), specials, split)

    @functools.cached_property
    def _trie(self) -> Trie:
        return Trie((piece, i) for i, piece in enumerate(self.token_bytes[: BYTES + len(self.pieces)]))

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        known: dict[bytes, list[int]] = {}
        ids: list[int] = []
        for word in cut(data, self.split):
            if word not in known:
                known[word] = fewest(self._trie, word)
            ids += known[word]
        return np.array(ids, np.int32)

    def sample(self, text: str | bytes, rng: np.random.Generator) -> NDArray[np.int32]:
        """The ids of one of the shortest paths, drawn: at every end a uniform one of the tied widths."""
        words = cut(as_bytes(text), self.split)
        return np.array([i for word in words for i in fewest(self._trie, word, rng)], np.int32)


def fewest(trie: Trie, data: bytes, rng: np.random.Generator | None = None) -> list[int]:
    """The ids of a shortest path, ties to the longest last token or drawn. Raises `ConfigError` if there is none."""
    size = len(data)
    length = [0] + [size + 1] * size
    back: list[tuple[int, int]] = [(-1, 0)] * (size + 1)  # (id, start) of the last token
    ways = [0] * (size + 1)
    for start in range(size):
        new = length[start] + 1
        if new > size:
            continue
        for i, end in trie.matches(data, start):
            # Starts come in order, so the first of equal lengths has the longest last token.
            if new < length[end]:
                length[end], back[end], ways[end] = new, (i, start), 1
            elif rng is not None and new == length[end]:
                ways[end] += 1
                if rng.integers(ways[end]) == 0:
                    back[end] = i, start
    require(length[size] <= size, f"the vocabulary has no way to spell {data[:40]!r}")
    ids = []
    while size:
        i, size = back[size]
        ids.append(i)
    return ids[::-1]


def increases(lattice: Substrings, active: NDArray[np.bool_]) -> NDArray[np.int64]:
    """By how many tokens the words would grow without each substring, int64 [S]: the paper's estimate.

    ``active`` [S + 1] says which substrings are in the vocabulary; the last entry is for none.
    """
    ids, layers = lattice.ids, lattice.layers
    widths, nodes = ids.shape
    allowed = active[ids]
    before = np.full(nodes, _FAR)
    behind = np.full(nodes, _FAR)
    width = np.zeros(nodes, np.int64)
    before[: layers[0][1]] = 0
    behind[lattice.last] = 0
    for j in range(1, len(layers)):
        at, words = layers[j]
        here = before[at : at + words]
        for k in range(1, min(widths, j) + 1):
            source = layers[j - k][0]
            new = np.where(allowed[k - 1, at : at + words], before[source : source + words] + 1, _FAR)
            better = new <= here  # ties to the longest
            np.copyto(here, new, where=better)
            np.copyto(width[at : at + words], k, where=better)
    for j in reversed(range(1, len(layers))):
        at, words = layers[j]
        for k in range(1, min(widths, j) + 1):
            source = layers[j - k][0]
            new = np.where(allowed[k - 1, at : at + words], behind[at : at + words] + 1, _FAR)
            there = behind[source : source + words]
            np.minimum(there, new, out=there)

    # Shortest path through each node, and through each token; then of windows, the best token around them.
    through = before + behind
    onward = np.append(lattice.next, nodes)
    around = np.full((widths + 1, nodes + 1), _FAR)
    starts = [np.arange(nodes)]
    for k in range(1, widths + 1):
        starts.append(lattice.previous[starts[-1]])
        edge = np.where(allowed[k - 1], before[starts[k]] + 1 + behind, _FAR)
        around[k - 1, :nodes] = edge
    for k in reversed(range(1, widths)):
        wider = np.minimum(around[k], around[k][onward])
        around[k - 1] = np.minimum(around[k - 1], wider)
    inside = np.full(nodes, _FAR)

    used = _on_paths(lattice, width)
    cost = np.zeros(len(lattice.pieces), np.int64)
    shortest = before[lattice.last][lattice.word_of]
    weight = lattice.weights[lattice.word_of]
    for k in range(2, widths + 1):
        inside = np.minimum(inside, through[starts[k - 1]])
        here = used[width[used] == k]
        wider = np.minimum(around[k][here], around[k][onward[here]])
        least = np.minimum(inside[here], wider) - shortest[here]
        np.add.at(cost, ids[k - 1, here], weight[here] * least.astype(np.int64))
    return cost


def _on_paths(lattice: Substrings, width: NDArray[np.int64]) -> NDArray[np.int64]:
    """The nodes where the tokens of every word end, going back from its last."""
    first = np.array([node for node, _ in lattice.layers], np.int64)
    found = []
    nodes = lattice.last
    while len(nodes):
        found.append(nodes)
        nodes = first[lattice.layer_of[nodes] - width[nodes]] + lattice.word_of[nodes]
        nodes = nodes[lattice.layer_of[nodes] > 0]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
