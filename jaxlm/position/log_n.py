"""Log-n temperature: queries times ln n / ln n0, n the number of keys; around any encoding.

So the entropy of attention stays what it was at the training length n0 (Su 2021; Chiang and Cholak 2022). Learned:
nothing. Claimed: better at lengths beyond training, without any. Variants: at least 1, so that nothing changes up to n0
(SelfExtend, Qwen), or without a floor, which softens short contexts (CLEX's log_scale); n is i + 1 for each query, or
the length of the whole context for all, as encoders want it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.types import Params
from jaxlm.position.sharper import Sharper


@dataclasses.dataclass(frozen=True)
class LogN(Sharper):
    """max(least, ln n / ln n0).

    Attributes:
      inner: the encoding that says where tokens are.
      original: n0, the length of training.
      least: the floor; 0 for none.
      count: n is each query's ``"position"`` + 1, or the ``"length"`` of the context, declared or current.
    """

    paper: ClassVar[str] = "Chiang and Cholak 2022, Overcoming a Theoretical Limitation of Self-Attention"

    original: int = 2048
    least: float = 1.0
    count: str = "position"

    def check(self) -> None:
        require(
            self.original > 1, f"LogN.original: expected the length of training, an integer over 1, got {self.original}"
        )
        require(self.least >= 0, f"LogN.least: expected a number >= 0, got {self.least}")
        choose("LogN.count", self.count, ("position", "length"))

    @property
    def by_length(self) -> bool:
        return self.count == "length" or self.inner.by_length

    def sharpness(self, p: Params, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        n = positions[..., None] + 1 if self.count == "position" else jnp.atleast_1d(jnp.asarray(length))[:, None, None]
        return jnp.maximum(jnp.log(n.astype(jnp.float32)) / math.log(self.original), self.least)
