"""Top-p: all but the nucleus is ruled out, the fewest likeliest tokens whose probability together reaches p.

A token stays if what is likelier amounts to less than p, so the first always does; those tied with the last stay too.
Paper: Holtzman et al. 2020.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.decode.processor import Processor


@dataclasses.dataclass(frozen=True)
class TopP(Processor):
    """Keeps the nucleus of probability ``p``."""

    paper: ClassVar[str] = "Holtzman et al. 2020, The Curious Case of Neural Text Degeneration"

    p: float = 0.9

    def check(self) -> None:
        require(0 < self.p <= 1, f"top_p: expected a number in (0, 1], got {self.p}")

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: Any) -> Any:
        ranked = jnp.sort(logits_BV, axis=-1, descending=True)
        chance = jax.nn.softmax(ranked, axis=-1)
        inside = jnp.cumsum(chance, axis=-1) - chance < self.p
        least = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits_BV >= least, logits_BV, -jnp.inf), state
