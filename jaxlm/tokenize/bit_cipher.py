"""Bit-cipher embeddings: token vectors from counts alone, without a factorisation and without training.

Paper: Zhao and Williams 2023, Bit Cipher: A Simple Yet Powerful Word Representation System that Integrates Efficiently
with Language Models. Two steps. (1) A token's code is the pattern of b bits at its rank by frequency: patterns with one
bit set come first, then those with two, and so on, each normalised, so that the b most frequent tokens are orthogonal
and the next nearly so. (2) A token's vector is made of the codes of its neighbours, by how often they stand there:

    v(t) = sum over offsets o and tokens u of n_o(t, u) code(u),       n_o(t, u) the times that u stands o behind t

(``"sum"``, b numbers), or the sums of each offset after one another (``"concat"``, 2 window b numbers). Learned:
nothing. Claimed: near word2vec and GloVe in probes of tags and names, and better first embeddings of language models.
Shown by: experiments.tokenization (bit_cipher). The paper's order of patterns of as many bits is not known to us; it is
a setting, and so is the norm.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import choose

ORDERS = ("lexicographic", "colexicographic", "shuffled")
NORMS = ("l2", "l1", "none")
JOINS = ("sum", "concat")
PAIRS = 2**16  # whose codes are held at once
LISTED = 2**20  # patterns that are listed to be shuffled

Vectors = NDArray[np.float64]


def patterns(bits: int, number: int, order: str = "lexicographic", seed: int = 0) -> NDArray[np.bool_]:
    """The first ``number`` patterns of ``bits`` bits, bool [number, bits], by how many bits are set.

    Args:
      bits: b; there are 2^b - 1 patterns, the empty one left out.
      number: of patterns.
      order: of those with as many bits: ``"lexicographic"`` by their first place (1100, 1010, 1001, 0110, ...);
        ``"colexicographic"`` by their last (1100, 1010, 0110, 1001, ...), where more bits add patterns behind the
        others; or ``"shuffled"``.
      seed: of the shuffle.

    Raises `ConfigError` if there are fewer patterns.
    """
    choose("order", order, ORDERS)
    require(bits > 0 and number >= 0, f"patterns: expected bits > 0 and number >= 0, got {bits} and {number}")
    require(number < 2**bits, f"{bits} bits make {2**bits - 1} patterns, fewer than {number} tokens")
    draws = np.random.default_rng(seed)
    out = np.zeros((number, bits), bool)
    row = 0
    for ones in range(1, bits + 1):
        size = min(math.comb(bits, ones), number - row)
        if not size:
            break
        places = np.array(list(itertools.islice(_places(bits, ones, order, draws), size)))
        out[np.arange(row, row + size)[:, None], places] = True
        row += size
    return out


def _places(bits: int, ones: int, order: str, draws: np.random.Generator) -> Iterator[Sequence[int]]:
    """The places of ``ones`` set bits, all ways in order."""
    if order == "lexicographic":
        yield from itertools.combinations(range(bits), ones)
    elif order == "colexicographic":
        word = (1 << ones) - 1
        while word < 1 << bits:
            yield [i for i in range(bits) if word >> i & 1]
            low = word & -word  # the next number with as many bits (Gosper)
            word = word + low | ((word ^ word + low) // low >> 2)
    elif math.comb(bits, ones) <= LISTED:
        every = list(itertools.combinations(range(bits), ones))
        yield from (every[i] for i in draws.permutation(len(every)))
    else:
        seen: set[tuple[int, ...]] = set()
        while True:
            one = tuple(sorted(draws.choice(bits, ones, replace=False).tolist()))
            if one not in seen:
                seen.add(one)
                yield one


@dataclasses.dataclass(frozen=True)
class BitCipher(Spec):
    """Codes by rank, and vectors of the codes of neighbours.

    Attributes:
      bits: b, of a code.
      window: offsets 1 to so many, on both sides.
      order: of patterns with as many bits (`patterns`).
      norm: of a code: ``"l2"`` length 1, ``"l1"`` sum 1, or ``"none"``.
      join: of the offsets, ``"sum"`` or ``"concat"`` (-window, ..., -1, 1, ..., window).
      seed: of a shuffled order.
    """

    paper: ClassVar[str] = "Zhao and Williams 2023, Bit Cipher: A Simple Yet Powerful Word Representation System"

    bits: int = 128
    window: int = 5
    order: str = "lexicographic"
    norm: str = "l2"
    join: str = "sum"
    seed: int = 0

    def check(self) -> None:
        for field in ("bits", "window"):
            value = getattr(self, field)
            require(value > 0, f"BitCipher.{field}: expected a positive integer, got {value}")
        choose("BitCipher.order", self.order, ORDERS)
        choose("BitCipher.norm", self.norm, NORMS)
        choose("BitCipher.join", self.join, JOINS)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.bits * (1 if self.join == "sum" else 2 * self.window)

    def codes(self, counts: ArrayLike) -> Vectors:
        """The code of each token, float64 [V, b], of its counts [V]: the most frequent first, of equals the first id.

        Raises `ConfigError` if there are more tokens than patterns.
        """
        counts = np.asarray(counts)
        ranked = patterns(self.bits, len(counts), self.order, self.seed).astype(np.float64)
        if self.norm != "none":
            ranked /= np.linalg.norm(ranked, ord=2 if self.norm == "l2" else 1, axis=1, keepdims=True)
        out = np.empty_like(ranked)
        out[np.argsort(-counts, kind="stable")] = ranked
        return out

    def vectors(self, documents: Iterable[ArrayLike], vocab_size: int) -> Vectors:
        """A vector of each token, float64 [V, width], of texts as token ids; zeros for tokens without neighbours.

        Offsets do not reach from one document into the next. Measured: 591 000 tokens of 1024 kinds, 128 bits, window
        5: 2.8 CPU-seconds.

        Raises `ConfigError` for a token outside the vocabulary, and as `codes`.
        """
        parts = [np.asarray(ids, np.int64) for ids in documents]
        ids = np.concatenate([np.zeros(0, np.int64), *parts])
        document = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        odd = ids[(ids < 0) | (ids >= vocab_size)]
        require(not odd.size, f"vectors: token {odd[:1]} is not one of 0..{vocab_size - 1}")
        codes = self.codes(np.bincount(ids, minlength=vocab_size))
        out = np.zeros((2 * self.window if self.join == "concat" else 1, vocab_size, self.bits))
        for place, offset in enumerate(o for o in range(-self.window, self.window + 1) if o):
            far = abs(offset)
            near, other = ids[far:], ids[: max(len(ids) - far, 0)]
            inside = document[far:] == document[: max(len(ids) - far, 0)]
            token, neighbour = (near, other) if offset < 0 else (other, near)
            _add(out[place if self.join == "concat" else 0], token[inside], neighbour[inside], codes)
        return np.moveaxis(out, 0, 1).reshape(vocab_size, -1)


def _add(out: Vectors, token: NDArray[np.int64], neighbour: NDArray[np.int64], codes: Vectors) -> None:
    """Adds to each token's row the code of each of its neighbours."""
    pairs, counts = np.unique(token * len(codes) + neighbour, return_counts=True)
    token, neighbour = pairs // len(codes), pairs % len(codes)
    for i in range(0, len(pairs), PAIRS):
        part = slice(i, i + PAIRS)
        starts = np.flatnonzero(np.diff(token[part], prepend=-1))
        out[token[part][starts]] += np.add.reduceat(counts[part, None] * codes[neighbour[part]], starts)


def table(vectors: ArrayLike, seed: int = 0) -> NDArray[np.float32]:
    """Vectors as the first embeddings of a model, float32 [V, D], of the size that drawn ones have.

    Each row is divided by its length, so that it is about the kinds of neighbours and not their number; the mean row is
    taken away; and all is scaled to a mean square of 1 / D. Rows of zeros, of tokens that were not seen, are drawn from
    N(0, 1 / D). This is ours: how the paper hands its vectors to a model is not known to us.
    """
    vectors = np.asarray(vectors, np.float64)
    size, width = vectors.shape
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    seen = lengths[:, 0] > 0
    out = np.random.default_rng(seed).standard_normal((size, width)) * width**-0.5
    if seen.any():
        known = vectors[seen] / lengths[seen]
        known -= known.mean(0)
        scale = np.sqrt(np.mean(known**2) * width)
        out[seen] = known / scale if scale > 0 else known
    return out.astype(np.float32)
