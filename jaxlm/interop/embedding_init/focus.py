"""FOCUS: a new token is a sparse mixture of the tokens that both vocabularies have.

Paper: Dobler and de Melo 2023, FOCUS: Effective Embedding Initialization for Monolingual Specialization of Multilingual
Models. Formula: w = sparsemax over the overlapping tokens of cos(a(new), a(overlapping)), e = w E, with a() the static
vectors of the target tokens (fastText on text of the new tokenizer; `jaxlm.tokenize.static_vectors` here). Overlapping
tokens are copied. Claimed: better than WECHSEL and random after continued pre-training in low-resource languages.

A token whose vector is zero (never seen in the text) gets the mean of the source rows. Where all cosines are negative
the weights are as they would be with a number added to all of them: sparsemax does not see it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.interop.embedding_init.base import EmbeddingInit, Ids, Material, Rows, average_by_similarity, sparsemax


@dataclasses.dataclass(frozen=True)
class Focus(EmbeddingInit):
    paper: ClassVar[str] = "Dobler and de Melo 2023, FOCUS: Effective Embedding Initialization for Specialization"
    needs_target: ClassVar[bool] = True

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        vectors = material.auxiliary_target
        assert vectors is not None
        shared = np.flatnonzero(material.overlap >= 0)
        if material.regular is not None:
            shared = shared[material.regular[material.overlap[shared]]]
        values = material.source[material.overlap[shared]]
        return average_by_similarity(
            vectors[new], vectors[shared], values, material.mean(), sparsemax, "overlapping tokens"
        )
