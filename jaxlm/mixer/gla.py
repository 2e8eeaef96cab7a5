"""Gated linear attention (GLA): linear attention whose state fades by one number per key channel and token.

    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T      o_t = S_t^T q_t / sqrt(K)      g = ln sigmoid(x F_1 F_2 + f) / 16
    y = U (norm(o) silu(x Z))

q, k, v = x W, or silu(conv(x W)). Learned: the projections (F of rank 16), f, a norm's gain. Claimed: as good as a
Transformer of its size, and better than it and Mamba on texts longer than those of training (Yang et al. 2024).
`experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.mixer.keyed import Keyed
from jaxlm.mixer.recurrent import Stream
from jaxlm.ops.dense import dense
from jaxlm.ops.vector_decay import vector_decay


@dataclasses.dataclass(frozen=True)
class Gla(Keyed):
    """Gated linear attention. The other fields are those of `Keyed`; K = D / 2H and V = D / H by default.

    Attributes:
      conv: tokens that convolutions of q, k and v read, which then pass through silu; 1 for none, as published.
      rank: of the projection to decays.
      temperature: what log decays are divided by.
    """

    paper: ClassVar[str] = "Yang et al. 2024, Gated Linear Attention Transformers with Hardware-Efficient Training"
    op: ClassVar[Any] = staticmethod(vector_decay)
    shares: ClassVar[tuple[float, float]] = (0.5, 1.0)

    conv: int = 1
    rank: int = 16
    temperature: float = 16.0

    def check(self) -> None:
        super().check()
        require(self.rank > 0, f"Gla.rank: expected a positive integer, got {self.rank}")
        require(self.temperature > 0, f"Gla.temperature: expected a positive number, got {self.temperature}")

    def params(self, dims: Dims) -> Specs:
        key, value = self.widths(dims)
        return {
            **super().params(dims),
            "decay_down": ParamSpec((dims.width, self.rank), ("embed", None)),
            "decay_up": ParamSpec((self.rank, self.heads, key), (None, "heads", None)),
            "decay_bias": ParamSpec((self.heads, key), ("heads", None), zeros, decay=False),
            "z": ParamSpec((dims.width, self.heads, value), ("embed", "heads", None)),
        }

    def recur(
        self, p: Params, x_BLD: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, stream: Stream
    ) -> tuple[jax.Array, Stream]:
        if self.conv > 1:
            q, k, v = (jax.nn.silu(x) for x in (q, k, v))
        logits = dense(dense(x_BLD, p["decay_down"]), p["decay_up"], dtype=jnp.float32)
        logits = dist.constrain(logits, ("batch", "length", "heads", None)) + p["decay_bias"].astype(jnp.float32)
        log_decay = jax.nn.log_sigmoid(logits) / self.temperature
        return self.run(stream, q * q.shape[-1] ** -0.5, k, v, log_decay)

    def gate(self, p: Params, x_BLD: jax.Array, out: jax.Array) -> jax.Array:
        return out * jax.nn.silu(dist.constrain(dense(x_BLD, p["z"]), ("batch", "length", "heads", None)))
