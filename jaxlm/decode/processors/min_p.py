"""Min-p: tokens less likely than min_p times the likeliest are ruled out, so the sure steps keep few and others many.

In logits: those below the largest by more than -log(min_p). Paper: Nguyen et al. 2024.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.decode.processor import Processor


@dataclasses.dataclass(frozen=True)
class MinP(Processor):
    """Keeps what has at least ``p`` times the probability of the likeliest token."""

    paper: ClassVar[str] = "Nguyen et al. 2024, Turning Up the Heat: Min-p Sampling"

    p: float = 0.05

    def check(self) -> None:
        require(0 <= self.p <= 1, f"min_p: expected a number in [0, 1] (0 is off), got {self.p}")

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: Any) -> Any:
        least = logits_BV.max(axis=-1, keepdims=True) + jnp.log(self.p)
        return jnp.where(logits_BV >= least, logits_BV, -jnp.inf), state
