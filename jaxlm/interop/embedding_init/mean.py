"""Mean: every new token starts as the mean of all source rows.

Paper: Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models. Claimed: the new tokens then take
at most the share of probability that an average token has, so that what the model says of the others hardly moves.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.interop.embedding_init.base import EmbeddingInit, Ids, Material, Rows


@dataclasses.dataclass(frozen=True)
class Mean(EmbeddingInit):
    paper: ClassVar[str] = "Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models"

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        return np.broadcast_to(material.mean(), (len(new), material.source.shape[1]))
