"""Gated linear units: y = (act(x W_gate) * x W_up) W_out (Shazeer 2020, GLU Variants Improve Transformer).

``silu`` is SwiGLU, ``gelu`` GEGLU, ``relu`` ReGLU, ``sigmoid`` GLU, ``identity`` the bilinear form. Gate and up are one
(D, F, 2) weight: one matmul, and sharding F needs no traffic to pair them. GPT-OSS clamps both before they meet and
adds 1 to the up part: act(min(gate, c)) * (clip(up, -c, c) + 1), with ``quick_gelu``. Falcon-H1 scales the gate before
its activation, and the output (muP).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Dims, Specs
from jaxlm.ffn.base import FeedForward, Linear
from jaxlm.ops.activation import activation


@dataclasses.dataclass(frozen=True)
class Glu(FeedForward):
    """Gated linear unit.

    Attributes:
      hidden: hidden width; 0 for ``expansion * width``, rounded up to a multiple of 8 so that it shards and tiles.
      expansion: hidden width as a multiple of the model's; 8/3 matches the parameters of a 4x perceptron.
      activation: a name of `jaxlm.ops.activation.ACTIVATIONS`, applied to the gate.
      bias: whether both layers have one.
      limit: if positive, the gate is at most this and the up part within plus and minus this.
      up_offset: added to the up part.
      gate_scale, out_scale: factors of the gate before its activation, and of the output.
      adapter: rank of a term x A B beside the first layer, which stays each layer's own where layers share the rest
        (Zamba2); 0 for none.
    """

    paper: ClassVar[str] = "Shazeer 2020, GLU Variants Improve Transformer"

    hidden: int = 0
    expansion: float = 8 / 3
    activation: str = "silu"
    bias: bool = False
    limit: float = 0.0
    up_offset: float = 0.0
    gate_scale: float = 1.0
    out_scale: float = 1.0
    adapter: int = 0

    def check(self) -> None:
        activation(self.activation)
        require(self.hidden >= 0 and self.expansion > 0, "Glu: expected hidden >= 0 and expansion > 0")
        for field in ("limit", "adapter"):
            value = getattr(self, field)
            require(value >= 0, f"Glu.{field}: expected a number >= 0, got {value}")

    def params(self, dims: Dims) -> Specs:
        hidden = self.hidden or 8 * math.ceil(self.expansion * dims.width / 8)
        specs = {
            "in": ParamSpec((dims.width, hidden, 2), ("embed", "mlp", None)),
            "out": ParamSpec((hidden, dims.width), ("mlp", "embed")),
        }
        if self.adapter:
            specs["in_down"] = ParamSpec((dims.width, self.adapter), ("embed", None), own=True)
            specs["in_up"] = ParamSpec((self.adapter, hidden, 2), (None, "mlp", None), own=True)
        if self.bias:
            specs["in_bias"] = ParamSpec((hidden, 2), ("mlp", None), zeros, decay=False)
            specs["out_bias"] = ParamSpec((dims.width,), (None,), zeros, decay=False)
        return specs

    def apply(self, linear: Linear, x: jax.Array) -> jax.Array:
        both = linear("in", x)
        gate, up = both[..., 0], both[..., 1]
        if self.gate_scale != 1:
            gate = gate * self.gate_scale
        if self.limit:
            gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        if self.up_offset:
            up = up + self.up_offset
        out = linear("out", activation(self.activation)(gate) * up)
        return out if self.out_scale == 1 else out * self.out_scale
