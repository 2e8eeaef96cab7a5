"""Kimi delta attention (KDA): the delta rule on a state that fades by one number per key channel and token.

    S' = diag(exp g_t) S_{t-1}    S_t = S' + beta_t k_t (v_t - S'^T k_t)^T    o_t = S_t^T q_t / sqrt(K)
    g = -exp(A_log) softplus(x F_1 F_2 + dt_bias)      y = U (norm(o) sigmoid(x Z_1 Z_2))

q, k, v = silu(conv(x W)), q and k of unit length, beta = sigmoid(x . b). Learned: the projections (F and Z of low
rank), convolutions, A_log per head, dt_bias per channel, a norm's gain. Claimed: in three layers of four, with full
attention in the fourth, better than full attention in all (Kimi team 2025). `experiments.state_space` shows what it can
recall.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.mixer.decays import LogOfUniform, Range, StepBias, check_range
from jaxlm.mixer.delta import Delta
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Kda(Delta):
    """Kimi delta attention. The other fields are those of `Keyed` and `Delta`; K = V = D / H by default.

    Attributes:
      rank: of the projections to decays and gates; 0 for V, as published.
      a_range: A at first, uniform.
      dt_range: what softplus makes of dt_bias at first, log-uniform.
    """

    paper: ClassVar[str] = "Kimi team 2025, Kimi Linear: An Expressive, Efficient Attention Architecture"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"toy": {"a_range": (0.02, 1.0), "dt_range": (0.05, 0.5)}}

    rank: int = 0
    a_range: Range = (1.0, 16.0)
    dt_range: Range = (1e-3, 1e-1)

    def check(self) -> None:
        super().check()
        require(self.rank >= 0, f"Kda.rank: expected an integer >= 0, got {self.rank}")
        check_range("Kda.a_range", self.a_range)
        check_range("Kda.dt_range", self.dt_range)

    def params(self, dims: Dims) -> Specs:
        key, value = self.widths(dims)
        rank, heads = self.rank or value, self.heads
        return {
            **super().params(dims),
            "decay_down": ParamSpec((dims.width, rank), ("embed", None)),
            "decay_up": ParamSpec((rank, heads, key), (None, "heads", None)),
            "A_log": ParamSpec((heads,), ("heads",), LogOfUniform(*self.a_range), decay=False),
            "dt_bias": ParamSpec((heads, key), ("heads", None), StepBias(*self.dt_range), decay=False),
            "gate_down": ParamSpec((dims.width, rank), ("embed", None)),
            "gate_up": ParamSpec((rank, heads, value), (None, "heads", None)),
        }

    def log_decay(self, p: Params, x_BLD: jax.Array) -> jax.Array:
        step = dense(dense(x_BLD, p["decay_down"]), p["decay_up"], dtype=jnp.float32)
        step = dist.constrain(step, ("batch", "length", "heads", None))
        step = jax.nn.softplus(step + p["dt_bias"].astype(jnp.float32))
        return -jnp.exp(p["A_log"].astype(jnp.float32))[:, None] * step

    def gate(self, p: Params, x_BLD: jax.Array, out: jax.Array) -> jax.Array:
        z = dense(dense(x_BLD, p["gate_down"]), p["gate_up"])
        return out * jax.nn.sigmoid(dist.constrain(z, ("batch", "length", "heads", None)))
