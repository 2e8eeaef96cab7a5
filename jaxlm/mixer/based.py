"""Based: linear attention whose features are a Taylor series, so that its weights are those of softmax to second order.

    w(q, k) = 1 + s + s^2 / 2,  s = q . k / sqrt(d')
    o_t = sum_{j <= t} w(q_t, k_j) v_j / (sum_{j <= t} w(q_t, k_j) + eps)

w is an inner product of 1 + d' + d'^2 features, and at least 1/2. Learned: the projections q, k (D, H, d'), v (D, H, V)
and out. Claimed: with d' = 16, and windows of 64 to 128 tokens in other layers (`attention` with mask ``window``), the
recall of attention from a state of fixed size (Arora et al. 2024).
`experiments.state_space` shows what it recalls for its size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.linear import Linear
from jaxlm.mixer.recurrent import Stream
from jaxlm.ops.dense import dense
from jaxlm.ops.scalar_decay import scalar_decay


def taylor(x: jax.Array) -> jax.Array:
    """Features [..., 1 + d + d^2] of x [..., d]: taylor(q) . taylor(k) = 1 + s + s^2 / 2 for s = q . k / sqrt(d)."""
    x = x * x.shape[-1] ** -0.25
    square = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)
    return jnp.concatenate((jnp.ones_like(x[..., :1]), x, square * math.sqrt(0.5)), -1)


@dataclasses.dataclass(frozen=True)
class Based(Linear):
    """Linear attention with second-order Taylor features.

    Attributes:
      heads: H, a divisor of the width.
      features: d', width of queries and keys before the features are made.
      eps: added to the sum of a token's weights.
      chunk, implementation: of `Linear`.
    """

    paper: ClassVar[str] = "Arora et al. 2024, Simple Linear Attention Models Balance the Recall-Throughput Tradeoff"
    op: ClassVar[Any] = staticmethod(scalar_decay)

    heads: int = 16
    features: int = 16
    eps: float = 1e-6

    def check(self) -> None:
        super().check()
        for name in ("heads", "features"):
            require(getattr(self, name) > 0, f"Based.{name}: expected a positive integer, got {getattr(self, name)}")
        require(self.eps >= 0, f"Based.eps: expected a number >= 0, got {self.eps}")

    def _width(self, dims: Dims) -> int:
        require(dims.width % self.heads == 0, f"Based.heads: model width {dims.width} is not divisible by {self.heads}")
        return dims.width // self.heads

    def _features(self) -> int:
        return 1 + self.features + self.features**2

    def params(self, dims: Dims) -> Specs:
        width, by_head = self._width(dims), ("embed", "heads", None)
        return {
            "q": ParamSpec((dims.width, self.heads, self.features), by_head),
            "k": ParamSpec((dims.width, self.heads, self.features), by_head),
            "v": ParamSpec((dims.width, self.heads, width), by_head),
            "out": ParamSpec((self.heads, width, dims.width), ("heads", None, "embed"), fan_in=(0, 1)),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self.heads, self._features(), self._width(dims) + 1)}  # the last column sums the weights

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        q, k, v = (dist.constrain(dense(x_BLD, p[name]), ("batch", "length", "heads", None)) for name in "qkv")
        v = jnp.concatenate((v, jnp.ones_like(v[..., :1])), -1)
        out, stream = self.run(stream, taylor(q), taylor(k), v)
        out = out[..., :-1] / (out[..., -1:] + self.eps)
        return dense(out, p["out"], inputs=2), stream
