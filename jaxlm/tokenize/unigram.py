"""The unigram language model over pieces, and subword regularisation (Kudo 2018, Subword Regularization).

Every piece has a probability, a segmentation x of a text has the product, and the text the sum over segmentations:

    P(text) = sum over x of prod_i p(x_i)      encode: the x of the largest product (Viterbi)
                                               sample: x with probability ~ (prod_i p(x_i))^alpha

Training: seeds are the frequent substrings inside pre-tokens; then, until the vocabulary is small enough, two steps of
expectation maximisation (expected counts by the forward-backward sums, p = count / total) and pruning: the pieces whose
loss would lower the likelihood the least are dropped, where a dropped piece hands its count to its own best
segmentation (as in SentencePiece). Single characters stay, but for the rarest, which are spelt in bytes.
Sampling draws from the exact distribution by forward filtering and backward sampling.
0.5 MB of code, CPU-seconds (results/benchmark/tokenize.txt): 4096 ids in 7, encoding 0.25. A model
of sentencepiece's own is encoded here into as many tokens, in seven times the time that the library takes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BYTES, as_bytes
from jaxlm.tokenize.pieces import SPECIALS, PieceTokenizer, covered, enough, room_for_pieces
from jaxlm.tokenize.pretokens import rule_of, word_counts
from jaxlm.tokenize.pretokens import split as cut
from jaxlm.tokenize.substrings import Substrings
from jaxlm.tokenize.trie import Trie

# Below the worst piece, as in SentencePiece: what a character costs that is spelt in bytes.
UNKNOWN = -10.0
_FLOOR = 0.5  # the least expected count that a piece which stays is given


@dataclasses.dataclass(frozen=True)
class UnigramTokenizer(PieceTokenizer):
    """Pieces of whole characters with their log-probabilities.

    A byte that begins a character unknown to the pieces costs `UNKNOWN` below the worst piece and its other bytes
    nothing, so a character spelt in bytes costs the same however long it is.

    Attributes:
      scores: natural log-probabilities in id order, of the 256 bytes and then the pieces.
      split: rules of `jaxlm.tokenize.pretokens`; segmentations do not cross these cuts.
    """

    name: ClassVar[str] = "unigram"
    paper: ClassVar[str] = "Kudo 2018, Subword Regularization: Improving Neural Network Translation Models"

    scores: tuple[float, ...] = (0.0,) * BYTES
    split: tuple[str, ...] = ("space",)

    def check(self) -> None:
        super().check()
        for rule in self.split:
            rule_of(rule)
        wanted = BYTES + len(self.pieces)
        require(
            len(self.scores) == wanted,
            f"UnigramTokenizer.scores: expected {wanted} (the bytes and {len(self.pieces)} pieces), "
            f"got {len(self.scores)}",
        )
        for i, score in enumerate(self.scores):
            if not math.isfinite(score):
                raise ConfigError(f"UnigramTokenizer.scores[{i}] is {score}; log-probabilities are finite")

    @classmethod
    def from_scores(
        cls, scores: dict[str, float], specials: tuple[str, ...] = SPECIALS, split: tuple[str, ...] = ("space",)
    ) -> Self:
        """The tokenizer of pieces, among them single characters, with their log-probabilities."""
        require(scores, "a unigram tokenizer needs at least one piece with a score")
        unknown = min(scores.values()) + UNKNOWN
        singles = [0.0 if 0x80 <= byte < 0xC0 else scores.get(chr(byte), unknown) for byte in range(128)]
        singles += [0.0 if byte < 0xC0 else unknown for byte in range(128, BYTES)]
        pieces = [piece for piece in scores if len(as_bytes(piece)) > 1]
        return cls(tuple(pieces), specials, (*singles, *(float(scores[piece]) for piece in pieces)), split)

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes] = (),
        vocab_size: int | None = None,
        *,
        specials: tuple[str, ...] = SPECIALS,
        split: tuple[str, ...] = ("space",),
        max_length: int = 16,
        coverage: float = 0.9995,
        seeds: int = 1_000_000,
        keep: float = 0.75,
        steps: int = 2,
    ) -> Self:
        """Expectation maximisation and pruning from the ``seeds`` substrings of the largest count times length.

        Args:
          max_length: the most characters of a piece.
          coverage: the share of the text whose characters are pieces; the rarest others are spelt in bytes.
          keep: the share of the pieces that a round of pruning keeps.
          steps: steps of expectation maximisation between two prunings.

        Raises `ConfigError` for a ``vocab_size`` that the characters alone fill, or the texts cannot.
        """
        room = room_for_pieces(cls.name, vocab_size, len(specials))
        require(max_length > 1, f"max_length must be 2 or more, got {max_length}")
        require(0 < keep < 1, f"keep must be between 0 and 1, got {keep}")
        require(steps > 0, f"steps must be positive, got {steps}")
        words, characters = covered(word_counts(texts, split), coverage)
        lattice = Substrings(words, max_length)
        fixed = lattice.lengths == 1
        require(
            len(characters) <= room,
            f"vocab_size {vocab_size} has {room} pieces and the texts {len(characters)} characters of several bytes; "
            "lower coverage or raise vocab_size",
        )
        enough(cls.name, len(characters) + int((~fixed).sum()), room, len(specials))
        room += int(fixed.sum()) - len(characters)  # characters of ASCII are bytes and take no room

        rank = lattice.counts * lattice.lengths
        active = fixed.copy()
        others = np.flatnonzero(~fixed)
        active[others[np.argsort(-rank[others], kind="stable")[: max(seeds, room - int(fixed.sum()))]]] = True
        counts = np.where(active, rank, 0).astype(np.float64)
        while True:
            for _ in range(steps):
                counts, _ = expected_counts(lattice, _scores(counts, active))
            size = int(active.sum())
            if size <= room:
                break
            loss = losses(lattice, counts, active)
            candidates = np.flatnonzero(active & ~fixed)
            order = np.lexsort((candidates, -loss[candidates]))
            active[candidates[order[max(room, int(keep * size)) - int(fixed.sum()) :]]] = False
        final = _scores(counts, active)
        chosen = np.flatnonzero(active)
        chosen = chosen[np.lexsort((chosen, -final[chosen]))]
        return cls.from_scores({lattice.pieces[i]: float(final[i]) for i in chosen}, specials, split)

    @functools.cached_property
    def _trie(self) -> Trie:
        return Trie((piece, i) for i, piece in enumerate(self.token_bytes[: BYTES + len(self.pieces)]))

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        known: dict[bytes, list[int]] = {}
        ids: list[int] = []
        for word in cut(data, self.split):
            if word not in known:
                known[word] = self._best(word)
            ids += known[word]
        return np.array(ids, np.int32)

    def _best(self, word: bytes) -> list[int]:
        size, scores, matches = len(word), self.scores, self._trie.matches
        total = [0.0] + [-math.inf] * size
        back = [(-1, 0)] * (size + 1)
        for start in range(size):
            here = total[start]
            for i, end in matches(word, start):
                new = scores[i] + here
                if new > total[end]:  # of equal ones the first, which has the longest last piece
                    total[end] = new
                    back[end] = i, start
        ids = []
        while size:
            i, size = back[size]
            ids.append(i)
        return ids[::-1]

    def sample(self, text: str | bytes, rng: np.random.Generator, alpha: float = 0.1) -> NDArray[np.int32]:
        """The ids of a segmentation drawn in proportion to its probability to the power ``alpha``.

        ``alpha`` 0 is uniform over all segmentations, 1 the model itself, and large values come close to `encode`.
        """
        require(math.isfinite(alpha) and alpha >= 0, f"alpha must be a number of 0 or more, got {alpha}")
        ids: list[int] = []
        for word in cut(as_bytes(text), self.split):
            into = self._into(word, alpha)
            forward = _forward(into)
            end, drawn = len(word), []
            while end:
                logits = np.array([forward[start] + score for _, start, score in into[end]])
                weights = np.cumsum(np.exp(logits - logits.max()))
                chosen = int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
                i, end, _ = into[end][chosen]
                drawn.append(i)
            ids += drawn[::-1]
        return np.array(ids, np.int32)

    def log_probability(self, text: str | bytes) -> float:
        """Natural log of P(text), the sum over all segmentations."""
        return sum(_forward(self._into(word, 1.0))[-1] for word in cut(as_bytes(text), self.split))

    def _into(self, word: bytes, alpha: float) -> list[list[tuple[int, int, float]]]:
        """For every end the pieces there: (id, start, alpha times its score)."""
        into: list[list[tuple[int, int, float]]] = [[] for _ in range(len(word) + 1)]
        for start in range(len(word)):
            for i, end in self._trie.matches(word, start):
                into[end].append((i, start, alpha * self.scores[i]))
        return into


def _forward(into: list[list[tuple[int, int, float]]]) -> list[float]:
    """Log of the sum over all segmentations of each prefix."""
    sums = [0.0]
    for pieces in into[1:]:
        terms = [sums[start] + score for _, start, score in pieces]
        top = max(terms)
        sums.append(top + math.log(sum(math.exp(term - top) for term in terms)))
    return sums


def expected_counts(lattice: Substrings, scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The E step: (expected number of times each substring is used [S], log-likelihood of the words in nats).

    ``scores`` [S]: natural log-probabilities, -inf for what is not in the vocabulary.
    """
    nodes = lattice.ids.shape[1]
    end, width = np.nonzero((scores > -np.inf)[lattice.ids.T] & (lattice.ids.T >= 0))
    piece = lattice.ids[width, end]
    start = lattice.start(end, width + 1)
    score = scores[piece]
    first = np.array([node for node, _ in lattice.layers], np.int64)

    forward = np.full(nodes, -np.inf)
    forward[: lattice.layers[0][1]] = 0.0
    bounds = np.searchsorted(end, [*first, nodes])  # the edges into each layer
    for low, high in zip(bounds[1:-1].tolist(), bounds[2:].tolist(), strict=True):
        _sums_into(forward, end[low:high], forward[start[low:high]] + score[low:high])

    behind = np.full(nodes, -np.inf)
    behind[lattice.last] = 0.0
    order = np.argsort(start, kind="stable")
    starts, ends, ordered = start[order], end[order], score[order]
    bounds = np.searchsorted(starts, [*first, nodes])  # the edges out of each layer
    for low, high in reversed(list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))):
        _sums_into(behind, starts[low:high], behind[ends[low:high]] + ordered[low:high])

    total = forward[lattice.last]
    word = lattice.word_of[end]
    share = lattice.weights[word] * np.exp(forward[start] + score + behind[end] - total[word])
    return np.bincount(piece, share, len(scores)).astype(np.float64), float(lattice.weights @ total)


def _sums_into(array: NDArray[np.float64], nodes: NDArray[np.int64], terms: NDArray[np.float64]) -> None:
    """Sets ``array`` at ``nodes`` [n], equal ones adjacent, to the log of the sum of the exp of their ``terms`` [n]."""
    if not len(nodes):
        return
    new = np.flatnonzero(np.diff(nodes, prepend=-1))
    top = np.maximum.reduceat(terms, new)
    top[top == -np.inf] = 0.0
    sizes = np.diff(new, append=len(nodes))
    with np.errstate(divide="ignore"):
        array[nodes[new]] = top + np.log(np.add.reduceat(np.exp(terms - np.repeat(top, sizes)), new))


def _scores(counts: NDArray[np.float64], active: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The M step: log of count / total, of counts that are at least `_FLOOR`."""
    raised = np.where(active, np.maximum(counts, _FLOOR), 0.0)
    with np.errstate(divide="ignore"):
        return np.log(raised) - math.log(raised.sum())


def losses(lattice: Substrings, counts: NDArray[np.float64], active: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much log-likelihood each piece's removal would cost, [S]; 0 for those not in the vocabulary.

    The piece's count goes to the parts of its own best segmentation without it: with T the total count and n parts,

        count (log(count / T) - sum over parts of log((count_part + count) / (T + count (n - 1))))
    """
    chosen = np.flatnonzero(active & (lattice.lengths > 1))
    chosen = chosen[np.argsort(-lattice.lengths[chosen], kind="stable")]
    lengths, place, rows = lattice.lengths[chosen], lattice.places[chosen], np.arange(len(chosen))
    score = np.append(_scores(counts, active), -np.inf)
    depth = int(lengths[0]) if len(chosen) else 0
    best = np.full((depth + 1, len(chosen)), -np.inf)
    best[0] = 0.0
    width = np.zeros((depth + 1, len(chosen)), np.int64)
    for j in range(1, depth + 1):
        inside = int((lengths >= j).sum())  # the longer pieces come first
        node = lattice.start(place[:inside], lengths[:inside] - j)
        for k in range(1, j + 1):
            new = best[j - k, :inside] + score[lattice.ids[k - 1, node]]
            better = (new > best[j, :inside]) & (lengths[:inside] > k)
            best[j, :inside][better] = new[better]
            width[j, :inside][better] = k

    count, total = counts[chosen], counts[active].sum()
    logs, parts, at = np.zeros(len(chosen)), np.zeros(len(chosen)), lengths.copy()
    while (going := at > 0).any():
        row, end = rows[going], at[going]
        node = lattice.start(place[row], lengths[row] - end)
        part = lattice.ids[width[end, row] - 1, node]
        logs[going] += np.log(np.maximum(counts[part], _FLOOR) + count[going])
        parts[going] += 1
        at[going] -= width[end, row]
    loss = np.zeros(len(counts))
    kept = np.log(np.maximum(count, _FLOOR) / total)
    loss[chosen] = count * (kept - (logs - parts * np.log(total + count * (parts - 1))))
    return loss
