"""K-Tokeniser: the new tokens of typed vocabularies start as the average of the old pieces.

Paper: Hasan et al. 2024, Infusing clinical knowledge into tokenisers for language models. The same numbers as
`mean_of_pieces`, under the name the paper gives the whole; its own part is the segmentation,
`jaxlm.tokenize.k_tokeniser`, which has several vocabularies, one per semantic type.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.interop.embedding_init.base import EmbeddingInit, Ids, Material, Rows, means_of_pieces


@dataclasses.dataclass(frozen=True)
class KTokeniser(EmbeddingInit):
    paper: ClassVar[str] = "Hasan et al. 2024, Infusing clinical knowledge into tokenisers for language models"
    needs_pieces: ClassVar[bool] = True

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        return means_of_pieces(material, new)
