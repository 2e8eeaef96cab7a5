"""Two-layer perceptron: y = act(x W_in + b_in) W_out + b_out (Vaswani et al. 2017).

The squared ReLU is from Primer (So et al. 2021).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Dims, Specs
from jaxlm.ffn.base import FeedForward, Linear
from jaxlm.ops.activation import activation


@dataclasses.dataclass(frozen=True)
class Mlp(FeedForward):
    """Perceptron with one hidden layer.

    Attributes:
      hidden: hidden width; 0 for ``expansion * width``.
      expansion: hidden width as a multiple of the model's.
      activation: a name of `jaxlm.ops.activation.ACTIVATIONS`.
      bias: whether both layers have one.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need"

    hidden: int = 0
    expansion: float = 4.0
    activation: str = "gelu"
    bias: bool = False

    def check(self) -> None:
        activation(self.activation)
        require(self.hidden >= 0 and self.expansion > 0, "Mlp: expected hidden >= 0 and expansion > 0")

    def params(self, dims: Dims) -> Specs:
        hidden = self.hidden or round(self.expansion * dims.width)
        specs = {
            "in": ParamSpec((dims.width, hidden), ("embed", "mlp")),
            "out": ParamSpec((hidden, dims.width), ("mlp", "embed")),
        }
        if self.bias:
            specs["in_bias"] = ParamSpec((hidden,), ("mlp",), zeros, decay=False)
            specs["out_bias"] = ParamSpec((dims.width,), (None,), zeros, decay=False)
        return specs

    def apply(self, linear: Linear, x: jax.Array) -> jax.Array:
        return linear("out", activation(self.activation)(linear("in", x)))
