"""Top-k: all but each row's k likeliest tokens are ruled out; those tied with the k-th stay (Fan et al. 2018)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.decode.processor import Processor


@dataclasses.dataclass(frozen=True)
class TopK(Processor):
    """Keeps the ``k`` likeliest. Another k is another computation, so it compiles."""

    paper: ClassVar[str] = "Fan et al. 2018, Hierarchical Neural Story Generation"

    k: int = dataclasses.field(default=50, metadata={"static": True})

    def check(self) -> None:
        require(self.k >= 1, f"top_k: expected a positive number of tokens, got {self.k}")

    def check_vocabulary(self, size: int) -> None:
        require(self.k <= size, f"top_k: expected 1 to {size} (all tokens), got {self.k}")

    def __call__(self, logits_BV: jax.Array, token_B: jax.Array | None, step: Any, state: Any) -> Any:
        least = jax.lax.top_k(logits_BV, self.k)[0][:, -1:]
        return jnp.where(logits_BV >= least, logits_BV, -jnp.inf), state
