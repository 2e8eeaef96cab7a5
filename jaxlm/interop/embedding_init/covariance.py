"""Covariance: a normal draw with the mean and the full covariance of the source rows.

Paper: Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models; the default of resizing in
transformers since 2024 (there with the covariance times 1e-9, ``scale`` here).
Formula: e ~ N(mean, scale * cov). A draw is mean + sqrt(scale / V) z (E - mean) with z standard normal [V], which has
that covariance without a D x D matrix ever being factorised (and whatever its rank).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.interop.embedding_init.base import CHUNK, EmbeddingInit, Ids, Material, Rows


@dataclasses.dataclass(frozen=True)
class Covariance(EmbeddingInit):
    """Attributes:
    scale: factor of the covariance; 0 gives the mean."""

    paper: ClassVar[str] = "Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models"

    scale: float = 1.0

    def check(self) -> None:
        require(self.scale >= 0, f"Covariance.scale: expected a number >= 0, got {self.scale}")

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        mean = material.mean()
        centred = material.source[material.usual].astype(np.float64) - mean
        out = np.empty((len(new), centred.shape[1]))
        for start in range(0, len(new), CHUNK):
            part = out[start : start + CHUNK]
            part[:] = (
                mean + np.sqrt(self.scale / len(centred)) * rng.standard_normal((len(part), len(centred))) @ centred
            )
        return out
