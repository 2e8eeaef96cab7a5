"""A temperature that falls with the position: queries times 1 + a ln(1 + floor((i + 1) / n)), around any encoding.

Learned: nothing beyond the inner encoding. Claimed: attention over long contexts stays as sharp as it was over short
ones (Nakanishi 2025, scalable softmax); Llama 4 has this form, at inference, in its layers without positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require, slot
from jaxlm.core.types import Dims, Mask, Params, PositionEncoding, Specs, TileBias


@dataclasses.dataclass(frozen=True)
class Temperature(PositionEncoding):
    """Sharper queries further on.

    Attributes:
      inner: the encoding that says where tokens are.
      rate: a.
      step: n, the positions over which nothing changes.
    """

    paper: ClassVar[str] = "Nakanishi 2025, Scalable-Softmax Is Superior for Attention; Meta 2025, Llama 4"

    inner: Any = slot("position", "none")
    rate: float = 0.1
    step: int = 8192

    def check(self) -> None:
        require(self.step > 0, f"Temperature.step: expected a positive integer, got {self.step}")
        require(
            self.inner.max_positions() is None and self.inner.scope == "layer",
            "Temperature.inner: expected an encoding of queries and keys, not of embeddings",
        )

    @property
    def pre_rotate(self) -> bool:
        return False  # queries are not treated as keys are

    @property
    def by_length(self) -> bool:
        return self.inner.by_length

    def params(self, dims: Dims) -> Specs:
        return self.inner.params(dims)

    def draw(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        return self.inner.draw(key, positions, rows)

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        sharpness = 1 + self.rate * jnp.log1p((pos_q.astype(jnp.float32) + 1) // self.step)
        views = self.inner.views(p, q, k, pos_q, pos_k, length)
        return [((q * sharpness[..., None, None]).astype(q.dtype), k, region) for q, k, region in views]

    def bias(self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array) -> TileBias | None:
        return self.inner.bias(p, q, k, pos_q, pos_k)
