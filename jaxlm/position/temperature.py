"""A temperature that falls with the position: queries times 1 + a ln(1 + floor((i + 1) / n)), around any encoding.

Learned: nothing beyond the inner encoding. Claimed: attention over long contexts stays as sharp as it was over short
ones (Nakanishi 2025, scalable softmax); Llama 4 has this form, at inference, in its layers without positions. Other
rules: `log_n`, `ssmax`, `temp_scale`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require, slot
from jaxlm.core.types import Params
from jaxlm.position.sharper import Sharper


@dataclasses.dataclass(frozen=True)
class Temperature(Sharper):
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

    def sharpness(self, p: Params, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        return 1 + self.rate * jnp.log1p((positions[..., None].astype(jnp.float32) + 1) // self.step)
