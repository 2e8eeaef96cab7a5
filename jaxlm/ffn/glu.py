"""Gated linear units: y = (act(x W_gate) * x W_up) W_out (Shazeer 2020, GLU Variants Improve Transformer).

``silu`` is SwiGLU, ``gelu`` GEGLU, ``relu`` ReGLU, ``sigmoid`` GLU, ``identity`` the bilinear form. Gate and up are one
(D, F, 2) weight: one matmul, and sharding F needs no traffic to pair them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax

from jaxlm.core.config import Spec, require
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.ops.activation import activation
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Glu(Spec):
    """Gated linear unit.

    Attributes:
      hidden: hidden width; 0 for ``expansion * width``, rounded up to a multiple of 8 so that it shards and tiles.
      expansion: hidden width as a multiple of the model's; 8/3 matches the parameters of a 4x perceptron.
      activation: a name of `jaxlm.ops.activation.ACTIVATIONS`, applied to the gate.
      bias: whether both layers have one.
    """

    paper: ClassVar[str] = "Shazeer 2020, GLU Variants Improve Transformer"

    hidden: int = 0
    expansion: float = 8 / 3
    activation: str = "silu"
    bias: bool = False

    def check(self) -> None:
        activation(self.activation)
        require(self.hidden >= 0 and self.expansion > 0, "Glu: expected hidden >= 0 and expansion > 0")

    def params(self, dims: Dims) -> Specs:
        hidden = self.hidden or 8 * math.ceil(self.expansion * dims.width / 8)
        specs = {
            "in": ParamSpec((dims.width, hidden, 2), ("embed", "mlp", None)),
            "out": ParamSpec((hidden, dims.width), ("mlp", "embed")),
        }
        if self.bias:
            specs["in_bias"] = ParamSpec((hidden, 2), ("mlp", None), zeros, decay=False)
            specs["out_bias"] = ParamSpec((dims.width,), (None,), zeros, decay=False)
        return specs

    def __call__(self, p: Params, x_BLD: jax.Array, ctx: Context) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        both = dense(x_BLD, p["in"])
        if self.bias:
            both = both + p["in_bias"].astype(both.dtype)
        out = dense(activation(self.activation)(both[..., 0]) * both[..., 1], p["out"])
        return out + p["out_bias"].astype(out.dtype) if self.bias else out
