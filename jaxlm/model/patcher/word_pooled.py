"""Words pooled by learned vectors (Thawani et al. 2023, Learn Your Tokens, arXiv 2310.11628).

Words are divided at white space. n learned vectors before each word's bytes, in an encoder within the word, become the
word's z; the bytes of the next word read n vectors made of y, by cross-attention, before a causal decoder within the
word (published: as a prefix of it; so a step is one token). `jaxlm.model.patcher.words` has the formulae.

Learned: the n vectors, the encoder, the projections, the cross-attention. n = 4 is the published best (not verified).
Claimed: next-word accuracy +300 % over subword and byte models, x30 on rare words.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.model.patcher.base import Answer, Reading, Row, Run
from jaxlm.model.patcher.cross import cross_params, read_patches
from jaxlm.model.patcher.words import Words
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class WordPooled(Words):
    """Words at white space, n vectors each.

    Attributes:
      pooled: n.
      heads: of the cross-attention.
    """

    paper: ClassVar[str] = "Thawani et al. 2023, Learn Your Tokens: Word-Pooled Tokenization for Language Modeling"
    marks: ClassVar[bool] = False

    pooled: int = 4
    heads: int = 4

    @property
    def vectors(self) -> int:
        return self.pooled

    def check(self) -> None:
        for field in ("pooled", "heads"):
            value = getattr(self, field)
            require(value > 0, f"WordPooled.{field}: expected a positive integer, got {value}")
        super().check()

    def params(self, dims: Dims) -> Specs:
        own = {
            "up": ParamSpec((dims.width, self.pooled, self.width), ("embed", None, None)),
            "cross_norm": self.norm.params(self.width),
            "cross": cross_params(self.width, self.heads, self.width),
        }
        return {**super().params(dims), **own}

    def up(self, p: Params, row: Row, reading: Reading, answer: Answer, run: Run) -> jax.Array:
        asked = self.norm(p["cross_norm"], reading.x)
        x = reading.x + read_patches(p["cross"], asked, dense(answer.y, p["up"]), answer)
        return run("decoder", x, reading.data["number"])
