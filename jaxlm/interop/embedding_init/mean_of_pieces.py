"""Mean of pieces (FVT): a new token is the average of the source tokens that spell it.

Paper: Gee et al. 2022, Fast Vocabulary Transfer for Language Model Compression. Formula: e(t) = mean of E[piece] over
the tokens of t in the source tokenizer. A token that is spelled by none (a special token without a counterpart) gets
the mean of all rows.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.interop.embedding_init.base import EmbeddingInit, Ids, Material, Rows, means_of_pieces


@dataclasses.dataclass(frozen=True)
class MeanOfPieces(EmbeddingInit):
    paper: ClassVar[str] = "Gee et al. 2022, Fast Vocabulary Transfer for Language Model Compression"
    needs_pieces: ClassVar[bool] = True

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        return means_of_pieces(material, new)
