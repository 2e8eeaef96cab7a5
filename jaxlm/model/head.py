"""What encoders put between their hidden states and an answer: the transform before the vocabulary, and the pooler.

Paper: Devlin et al. 2018, BERT. The transform is norm(act(h W + b)) of every token, the pooler tanh(h W + b) of the
first. Learned: W, b and the norm.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, slot
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Params, Specs
from jaxlm.ops.activation import activation
from jaxlm.ops.dense import dense


def linear_params(width: int, bias: bool = True) -> Specs:
    specs: Specs = {"kernel": ParamSpec((width, width), ("embed", None))}
    if bias:
        specs["bias"] = ParamSpec((width,), (None,), zeros, decay=False)
    return specs


def _linear(p: Params, x: jax.Array) -> jax.Array:
    y = dense(x, p["kernel"])
    return y + p["bias"].astype(y.dtype) if "bias" in p else y


@dataclasses.dataclass(frozen=True)
class HeadTransform(Spec):
    """A layer between the last block and the vocabulary, of the model's width: norm(act(h W + b)).

    Attributes:
      activation: a name of `jaxlm.ops.activation.ACTIVATIONS`.
      norm: its normalisation.
      bias: whether there is a b (ModernBERT has none).
    """

    activation: str = "gelu"
    norm: Any = slot("norm", "layer")
    bias: bool = True

    def check(self) -> None:
        activation(self.activation)

    def params(self, width: int) -> Specs:
        return {**linear_params(width, self.bias), "norm": self.norm.params(width)}

    def __call__(self, p: Params, x: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> [..., D]."""
        return self.norm(p["norm"], activation(self.activation)(_linear(p, x)))


def pool(p: Params, hidden: jax.Array) -> jax.Array:
    """The first token of each row, [B, L, D] -> [B, D], for whoever classifies rows."""
    return jnp.tanh(_linear(p, hidden[:, 0]))
