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
    """

    paper: ClassVar[str] = "Zhang and Sennrich 2019, Root Mean Square Layer Normalization"

    eps: float = 1e-6
    offset: float = 0.0

    def check(self) -> None:
        require(self.eps >= 0, f"RmsNorm.eps: expected a number >= 0, got {self.eps}")

    def params(self, width: int) -> Specs:
        return {"scale": ParamSpec((width,), (None,), Constant(1.0 - self.offset), decay=False)}

    def __call__(self, p: Params, x: jax.Array) -> jax.Array:
        """Normalises the last axis of ``x`` in float32; returns x's dtype."""
        wide = x.astype(jnp.float32)
        gain = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        return (wide * gain * (self.offset + p["scale"].astype(jnp.float32))).astype(x.dtype)
