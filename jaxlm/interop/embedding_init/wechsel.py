"""WECHSEL: a new token is a softmax mixture of its nearest source tokens in a space of word vectors.

Paper: Minixhofer et al. 2022, WECHSEL: Effective initialization of subword embeddings for cross-lingual transfer.
Formula: e = sum over the ``neighbours`` most similar source tokens s of softmax(cos(a(new), a(s)) / temperature) E[s].
a() of a token is the sum of the vectors of the words that contain it, by count, in a space that both languages share
(`jaxlm.tokenize.static_vectors.subword_vectors`). A token whose vector is zero gets the mean of the source rows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.interop.embedding_init.base import (
    EmbeddingInit,
    Ids,
    Material,
    Rows,
    average_by_similarity,
    nearest_softmax,
)


@dataclasses.dataclass(frozen=True)
class Wechsel(EmbeddingInit):
    """Attributes:
    neighbours: how many source tokens are mixed.
    temperature: of the softmax."""

    paper: ClassVar[str] = "Minixhofer et al. 2022, WECHSEL: Effective initialization of subword embeddings"
    needs_target: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True

    neighbours: int = 10
    temperature: float = 0.1

    def check(self) -> None:
        require(self.neighbours >= 1, f"Wechsel.neighbours: expected 1 or more, got {self.neighbours}")
        require(self.temperature > 0, f"Wechsel.temperature: expected a number above 0, got {self.temperature}")

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        target, source = material.auxiliary_target, material.auxiliary_source
        assert target is not None and source is not None
        weigh = functools.partial(nearest_softmax, count=self.neighbours, temperature=self.temperature)
        usual = material.usual
        return average_by_similarity(
            target[new], source[usual], material.source[usual], material.mean(), weigh, "source tokens"
        )
