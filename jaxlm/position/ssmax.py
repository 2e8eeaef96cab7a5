"""Scalable softmax (SSMax): logits times s_h ln n, n = i + 1 the number of keys a query sees; around any encoding.

A softmax over n logits times s ln n is n^(s z_i) / sum_j n^(s z_j): what stands out does so however many there are.
Learned: s of each head, in each layer. Claimed: lower loss, better at lengths beyond training, and retrieval that does
not fade (Nakanishi 2025).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import Constant, ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.position.sharper import Sharper


@dataclasses.dataclass(frozen=True)
class SsMax(Sharper):
    """Logits that grow with ln n.

    Attributes:
      inner: the encoding that says where tokens are.
      scale: initial s; 0.168 is 1 over the mean of ln n to n = 1024, so that logits begin as large as without it.
    """

    paper: ClassVar[str] = "Nakanishi 2025, Scalable-Softmax Is Superior for Attention"

    scale: float = 0.168

    def check(self) -> None:
        require(self.scale > 0, f"SsMax.scale: expected a positive number, got {self.scale}")
        require(
            self.inner.scope == "layer",
            "SsMax.inner: expected an encoding whose parameters, if any, are each layer's own",
        )

    def params(self, dims: Dims) -> Specs:
        own = ParamSpec((dims.heads,), ("heads",), Constant(self.scale), decay=False)
        return {**self.inner.params(dims), "ssmax": own}

    def sharpness(self, p: Params, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        return p["ssmax"].astype(jnp.float32) * jnp.log(positions[..., None].astype(jnp.float32) + 1)
