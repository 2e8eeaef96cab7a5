"""LayerNorm: y = (x - mean) / sqrt(var + eps) * scale + bias (Ba et al. 2016). Learned: scale and bias, unless off."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require
from jaxlm.core.params import Constant, ParamSpec, zeros
from jaxlm.core.types import Params, Specs


@dataclasses.dataclass(frozen=True)
class LayerNorm(Spec):
    """Mean and variance normalisation.

    Attributes:
      eps: added to the variance.
      bias: whether an offset is learned.
      offset: the gain is ``offset + scale``; Nemotron stores scale - 1 and uses 1.
      gain: whether there is one (OLMo's norms learn nothing).
    """

    paper: ClassVar[str] = "Ba et al. 2016, Layer Normalization"

    eps: float = 1e-5
    bias: bool = True
    offset: float = 0.0
    gain: bool = True

    def check(self) -> None:
        require(self.eps >= 0, f"LayerNorm.eps: expected a number >= 0, got {self.eps}")

    def params(self, width: int) -> Specs:
        specs: Specs = {}
        if self.gain:
            specs["scale"] = ParamSpec((width,), (None,), Constant(1.0 - self.offset), decay=False)
        if self.bias:
            specs["bias"] = ParamSpec((width,), (None,), zeros, decay=False)
        return specs

    def __call__(self, p: Params, x: jax.Array) -> jax.Array:
        """Normalises the last axis of ``x`` in float32; returns x's dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + self.eps)
        if self.gain:
            y = y * (self.offset + p["scale"].astype(jnp.float32))
        return (y + p["bias"] if self.bias else y).astype(x.dtype)
