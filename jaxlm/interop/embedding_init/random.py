"""Random: a normal draw with the mean and standard deviation of the source rows, dimension by dimension.

Paper: the baseline of Minixhofer et al. 2024, Zero-Shot Tokenizer Transfer (and of most work on vocabularies).
Formula: e ~ N(mean_d, deviation_d^2) in each dimension d, population statistics. Learned from: nothing about the token.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.interop.embedding_init.base import EmbeddingInit, Ids, Material, Rows


@dataclasses.dataclass(frozen=True)
class Random(EmbeddingInit):
    paper: ClassVar[str] = "Minixhofer et al. 2024, Zero-Shot Tokenizer Transfer (its random baseline)"

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        noise = rng.standard_normal((len(new), material.source.shape[1]))
        return material.mean() + material.deviation() * noise
