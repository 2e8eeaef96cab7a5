"""Linear attention: attention whose softmax is replaced by a product of features, so that past keys are a matrix.

    S_t = S_{t-1} + phi(k_t) v_t^T    z_t = z_{t-1} + phi(k_t)    o_t = phi(q_t)^T S_t / (phi(q_t)^T z_t + eps)

phi(x) = elu(x) + 1, or the identity without the normaliser z. Learned: the projections qkv (D, H, 3, K) and out.
Claimed: attention in O(L) time and O(1) state (Katharopoulos et al. 2020).
`experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.linear import Linear
from jaxlm.mixer.recurrent import Stream
from jaxlm.ops.dense import dense
from jaxlm.ops.scalar_decay import scalar_decay

FEATURES = ("elu", "identity")


@dataclasses.dataclass(frozen=True)
class LinearAttention(Linear):
    """Linear attention.

    Attributes:
      heads: H, a divisor of the width.
      features: ``"elu"`` for elu(x) + 1, ``"identity"`` for none.
      normalise: whether outputs are divided by the sum of their weights.
      chunk, implementation: of `Linear`.
    """

    paper: ClassVar[str] = "Katharopoulos et al. 2020, Transformers are RNNs"
    op: ClassVar[Any] = staticmethod(scalar_decay)

    heads: int = 8
    features: str = "elu"
    normalise: bool = True

    def check(self) -> None:
        super().check()
        require(self.heads > 0, f"LinearAttention.heads: expected a positive integer, got {self.heads}")
        choose("LinearAttention.features", self.features, FEATURES)
        require(
            self.features == "elu" or not self.normalise,
            "LinearAttention.normalise needs positive features: set features 'elu', or normalise=False",
        )

    def _width(self, dims: Dims) -> int:
        require(
            dims.width % self.heads == 0,
            f"LinearAttention.heads: model width {dims.width} is not divisible by {self.heads}",
        )
        return dims.width // self.heads

    def params(self, dims: Dims) -> Specs:
        width = self._width(dims)
        return {
            "qkv": ParamSpec((dims.width, self.heads, 3, width), ("embed", "heads", None, None)),
            "out": ParamSpec((self.heads, width, dims.width), ("heads", None, "embed"), fan_in=(0, 1)),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        width = self._width(dims)
        return {"state": (self.heads, width, width + self.normalise)}  # z is what a value of 1 leaves in S

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        qkv = dist.constrain(dense(x_BLD, p["qkv"]), ("batch", "length", "heads", None, None))
        q, k, v = (qkv[..., i, :] for i in range(3))
        if self.features == "elu":
            q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        else:
            q = q * q.shape[-1] ** -0.5
        if self.normalise:
            v = jnp.concatenate((v, jnp.ones_like(v[..., :1])), -1)
        out, stream = self.run(stream, q, k, v)
        if self.normalise:
            out = out[..., :-1] / (out[..., -1:] + 1e-6)
        return dense(out, p["out"], inputs=2), stream
