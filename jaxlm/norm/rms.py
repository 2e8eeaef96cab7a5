"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * scale (Zhang and Sennrich 2019). Learned: the scale, stored as given."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require
from jaxlm.core.params import Constant, ParamSpec
from jaxlm.core.types import Params, Specs


@dataclasses.dataclass(frozen=True)
class RmsNorm(Spec):
    """Root-mean-square normalisation.

    Attributes:
      eps: added to the mean square.
      offset: the gain is ``offset + scale``; Gemma stores scale - 1 and uses 1.
      gain: whether there is one (the queries and keys of Llama 4 have none).
    """

    paper: ClassVar[str] = "Zhang and Sennrich 2019, Root Mean Square Layer Normalization"

    eps: float = 1e-6
    offset: float = 0.0
    gain: bool = True

    def check(self) -> None:
        require(self.eps >= 0, f"RmsNorm.eps: expected a number >= 0, got {self.eps}")

    def params(self, width: int) -> Specs:
        return {"scale": ParamSpec((width,), (None,), Constant(1.0 - self.offset), decay=False)} if self.gain else {}

    def __call__(self, p: Params, x: jax.Array) -> jax.Array:
        """Normalises the last axis of ``x`` in float32; returns x's dtype."""
        wide = x.astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        if self.gain:
            y = y * (self.offset + p["scale"].astype(jnp.float32))
        return y.astype(x.dtype)
