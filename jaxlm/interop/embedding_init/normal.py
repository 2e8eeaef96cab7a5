"""Normal: a draw around zero that knows nothing of the source rows, as a fresh model would begin.

Source: what `resize_token_embeddings` of transformers does without mean resizing (``initializer_range``).
Formula: e ~ N(0, deviation^2). The control under every other method, `random` among them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.core.config import require
from jaxlm.interop.embedding_init.base import EmbeddingInit, Ids, Material, Rows


@dataclasses.dataclass(frozen=True)
class Normal(EmbeddingInit):
    """Attributes:
    deviation: standard deviation."""

    paper: ClassVar[str] = "Radford et al. 2018, Improving Language Understanding by Generative Pre-Training"

    deviation: float = 0.02

    def check(self) -> None:
        require(self.deviation >= 0, f"Normal.deviation: expected a number >= 0, got {self.deviation}")

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        return self.deviation * rng.standard_normal((len(new), material.source.shape[1]))
