"""OFA: one for all languages, the new tokens being averages of neighbours' coordinates in a factorised embedding.

Paper: Liu et al. 2024, OFA: A Framework of Initializing Unseen Subword Embeddings for Efficient Large-scale
Multilingual Continued Pretraining. Formula: E ~ F P by a truncated SVD of the source matrix (F [V, d], P [d, D], not
centred). A new token's coordinates are softmax(cos / temperature) averages of F over its nearest source tokens in
external vectors, as in WECHSEL; a token without a vector draws them from a normal with the mean and deviation of F. Its
row is those times P. Claimed: with d = 100 or 200 continued pre-training converges as fast or faster, with a fraction
of the parameters.

Rows of tokens that are in both vocabularies stay what they were (`embedding_init.base`), so the rank shows in the new
rows alone; `factorise` gives F and P to whoever trains those two in the matrix' place.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.interop.embedding_init.base import (
    EmbeddingInit,
    Ids,
    Material,
    Rows,
    average_by_similarity,
    nearest_softmax,
)


def factorise(matrix: NDArray, rank: int) -> tuple[Rows, Rows]:
    """F [V, d] and P [d, D], orthonormal rows, whose product is the best approximation of that rank (Eckart and Young).

    d is ``rank``, or the smaller of V and D where that is less; ``rank`` 0 means no limit.
    """
    matrix = np.asarray(matrix, np.float64)
    # The right singular vectors are the Gram matrix' eigenvectors: D x D, however many tokens there are.
    _, vectors = np.linalg.eigh(matrix.T @ matrix)
    size = min(matrix.shape)
    primitives = vectors[:, ::-1][:, : min(rank or size, size)].T
    return matrix @ primitives.T, primitives


@dataclasses.dataclass(frozen=True)
class Ofa(EmbeddingInit):
    """Attributes:
    rank: d, the number of coordinates (the paper's 100, 200, 400); 0 for the full width.
    neighbours: how many source tokens are averaged.
    temperature: of the softmax."""

    paper: ClassVar[str] = "Liu et al. 2024, OFA: A Framework of Initializing Unseen Subword Embeddings"
    needs_target: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True

    rank: int = 0
    neighbours: int = 10
    temperature: float = 0.1

    def check(self) -> None:
        require(self.rank >= 0, f"Ofa.rank: expected 0 (the full width) or more, got {self.rank}")
        require(self.neighbours >= 1, f"Ofa.neighbours: expected 1 or more, got {self.neighbours}")
        require(self.temperature > 0, f"Ofa.temperature: expected a number above 0, got {self.temperature}")

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        target, source = material.auxiliary_target, material.auxiliary_source
        assert target is not None and source is not None
        usual = material.usual
        coordinates, primitives = factorise(material.source[usual], self.rank)
        weigh = functools.partial(nearest_softmax, count=self.neighbours, temperature=self.temperature)
        mean, deviation = coordinates.mean(0), coordinates.std(0)
        rows = average_by_similarity(target[new], source[usual], coordinates, mean, weigh, "source tokens")
        unknown = ~np.any(target[new] != 0, axis=1)
        rows[unknown] += deviation * rng.standard_normal((int(unknown.sum()), rows.shape[1]))
        return rows @ primitives
