"""SelfExtend: exact positions among neighbours, grouped ones beyond, in one softmax.

At distances r = i - j below W the score is that of (i, j); beyond, that of (floor(i / G) + W - W / G, floor(j / G)), so
a model trained on L positions reads (L - W) G + W of them at distances that it knows. Learned: nothing. Claimed: a
rotary model's context grows several times without tuning (Jin et al. 2024). Shown by: experiments.context_extension.
For causal masks. A query factor ln n, which the paper offers as an option, is a temperature's to give.

    longer = jaxlm.replace(model, {"mixer.position": SelfExtend(rotary, window=1024, group=8)})

A model's sliding window stays in its mask, and hides what is grouped unless the mask is replaced too.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.types import Mask, Params
from jaxlm.position.views import RotaryViews, mask_of


@dataclasses.dataclass(frozen=True)
class SelfExtend(RotaryViews):
    """Two views of a rotary encoding, near and grouped.

    Attributes:
      inner: the rotary encoding.
      window: W, how many distances, from 0, are exact.
      group: G, how many positions become one; 1 changes nothing. W - W / G need not be whole.
    """

    paper: ClassVar[str] = "Jin et al. 2024, LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning"

    window: int = 512
    group: int = 8

    def check(self) -> None:
        super().check()
        for name in ("window", "group"):
            value = getattr(self, name)
            require(hasattr(value, "aval") or value > 0, f"SelfExtend.{name}: expected a positive integer, got {value}")

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        length = self.known(pos_q, pos_k, length)
        near = mask_of("window", size=self.window)
        # Angles are taken of float32 positions, which may as well be fractions.
        grouped = (pos_q // self.group).astype(jnp.float32) + (self.window - self.window / self.group)
        return [
            (*self.view(p, q, k, pos_q, pos_k, length), near),
            (*self.view(p, q, k, grouped, pos_k // self.group, length), ~near),
        ]
