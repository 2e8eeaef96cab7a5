"""The switching source: a binary Markov chain of order k (Makkuva et al. 2024; Rajaraman et al. 2024).

Given the symbol k places back, the next one differs from it with probability p where that symbol is 0, and q where it
is 1. So there are k independent chains in turn, and with pi1 = p / (p + q), pi0 = 1 - pi1 and h the binary entropy

    stationary P(1) = pi1      entropy rate = pi0 h(p) + pi1 h(q)      best model of single symbols = h(pi1)   [bits]

Transformers on its symbols are stuck at the last for k >= 2, while with a dictionary of phrases even the best *unigram*
model over tokens comes close to the entropy rate: `unigram_bits_per_char` of `jaxlm.tokenize.dictionary`'s tokens.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import Spec, require


@dataclasses.dataclass(frozen=True)
class SwitchingSource(Spec):
    """Symbols 0 and 1.

    Attributes:
      k: order of the chain.
      p: P(next != the symbol k back | that is 0).
      q: the same where that is 1.
    """

    k: int = 1
    p: float = 0.9
    q: float = 0.9

    def check(self) -> None:
        require(self.k >= 1, f"SwitchingSource.k must be positive, got {self.k}")
        for name, value in (("p", self.p), ("q", self.q)):
            require(0 <= value <= 1, f"SwitchingSource.{name} must be a probability, got {value}")
        require(self.p + self.q > 0, "SwitchingSource: with p = q = 0 nothing ever changes; give one of them")

    @property
    def stationary(self) -> float:
        """P(1) in the long run."""
        return self.p / (self.p + self.q)

    @property
    def entropy_rate(self) -> float:
        """Bits per symbol: what the best model of any kind reaches."""
        return (1 - self.stationary) * _entropy(self.p) + self.stationary * _entropy(self.q)

    @property
    def unigram_floor(self) -> float:
        """Bits per symbol of the best model that does not look back."""
        return _entropy(self.stationary)

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """``n`` symbols 0 or 1, begun in the stationary distribution: uint8 [n]."""
        require(n >= 0, f"the number of symbols must not be negative, got {n}")
        rows = -(-n // self.k)
        uniform = rng.random((rows, self.k))
        symbols = np.zeros((rows, self.k), np.uint8)
        if rows:
            symbols[0] = uniform[0] < self.stationary
        for row in range(1, rows):
            before = symbols[row - 1]
            symbols[row] = before ^ (uniform[row] < np.where(before, self.q, self.p))
        return symbols.reshape(-1)[:n]

    def text(self, n: int, rng: np.random.Generator) -> str:
        """``n`` symbols as ``a`` (0) and ``b`` (1)."""
        return (self.sample(n, rng) + ord("a")).tobytes().decode()


def unigram_bits_per_char(tokens: ArrayLike, characters: int) -> float:
    """Bits per character of the best unigram model over the tokens of a text of so many characters.

    The entropy of their own frequencies times tokens / characters (plug-in; the dictionary's cost is left out).
    """
    ids = np.asarray(tokens)
    require(
        ids.ndim == 1 and (ids.size == 0 or ids.dtype.kind in "iu"),
        f"expected token ids of shape [n] and an integer dtype, got {ids.shape} {ids.dtype}",
    )
    require(characters > 0, f"characters must be positive, got {characters}")
    _, counts = np.unique(ids, return_counts=True)
    return float(-(counts * np.log2(counts / max(ids.size, 1))).sum() / characters)


def _entropy(p: float) -> float:
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)
