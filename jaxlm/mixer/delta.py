"""What DeltaNet, Gated DeltaNet and KDA have in common: unit queries and keys, and how much of an error is corrected.

q, k, v = silu(conv(x W));  q, k of unit length      beta = sigmoid(x . b), or twice that
S_t = S' + beta_t k_t (v_t - S'^T k_t)^T,  S' = diag(exp g_t) S_{t-1}      o_t = S_t^T q_t / sqrt(K)
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.mixer.keyed import Keyed
from jaxlm.mixer.recurrent import Stream
from jaxlm.ops.delta_rule import delta_rule
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Delta(Keyed):
    """The base of the delta rules. Subclasses give `log_decay` and `gate`.

    Attributes:
      allow_negative: beta is in (0, 2), not (0, 1), so that a token can turn the sign of a key's value.
    """

    op: ClassVar[Any] = staticmethod(delta_rule)
    diagonal: ClassVar[bool] = False

    allow_negative: bool = False

    def params(self, dims: Dims) -> Specs:
        return {**super().params(dims), "beta": ParamSpec((dims.width, self.heads), ("embed", "heads"))}

    def flops(self, dims: Dims, length: int) -> float:
        """As of `Keyed`, and the corrections: their products, inverse, and what the state holds already."""
        key, value = self.widths(dims)
        return super().flops(dims, length) + self.heads * (
            2.0 * self.chunk * (key + value) + self.chunk**2 + 2.0 * key * value
        )

    def log_decay(self, p: Params, x_BLD: jax.Array) -> jax.Array | None:
        """float32 [B, L, H] or [B, L, H, K]; None for no decay."""
        return None

    def recur(
        self, p: Params, x_BLD: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, stream: Stream
    ) -> tuple[jax.Array, Stream]:
        q, k = (_unit(jax.nn.silu(x)) for x in (q, k))
        beta = jax.nn.sigmoid(dense(x_BLD, p["beta"], dtype=jnp.float32))
        beta = 2 * beta if self.allow_negative else beta
        q = q * q.shape[-1] ** -0.5
        return self.run(stream, q, k, jax.nn.silu(v), beta, self.log_decay(p, x_BLD))


def _unit(x: jax.Array) -> jax.Array:
    """x over its length, float32: of the errors in keys, the state would keep a sum."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)
