"""Gated DeltaNet: the delta rule on a state that fades by one number per head and token.

    S' = exp(g_t) S_{t-1}    S_t = S' + beta_t k_t (v_t - S'^T k_t)^T    o_t = S_t^T q_t / sqrt(K)
    g = -exp(A_log) softplus(x . a + dt_bias)      y = U (norm(o) silu(x Z))

q, k, v = silu(conv(x W)), q and k of unit length, beta = sigmoid(x . b). Learned: the projections, convolutions, A_log
and dt_bias per head, a norm's gain. With fewer key heads it is the linear layer of Qwen3-Next. Claimed: recall of the
delta rule, and forgetting as fast as Mamba-2 (Yang et al. 2025). `experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.mixer.decays import LogOfUniform, Range, StepBias, check_range
from jaxlm.mixer.delta import Delta
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class GatedDeltaNet(Delta):
    """Gated DeltaNet. The other fields are those of `Keyed` and `Delta`; K = 3/4 D / H and V = 3/2 D / H by default.

    Attributes:
      a_range: A at first, uniform.
      dt_range: what softplus makes of dt_bias at first, log-uniform.
    """

    paper: ClassVar[str] = "Yang et al. 2025, Gated Delta Networks: Improving Mamba2 with Delta Rule"
    shares: ClassVar[tuple[float, float]] = (0.75, 1.5)
    presets: ClassVar[dict[str, dict[str, Any]]] = {"toy": {"a_range": (0.02, 1.0), "dt_range": (0.05, 0.5)}}

    a_range: Range = (0.01, 16.0)
    dt_range: Range = (1e-3, 1e-1)

    def check(self) -> None:
        super().check()
        check_range("GatedDeltaNet.a_range", self.a_range)
        check_range("GatedDeltaNet.dt_range", self.dt_range)

    def params(self, dims: Dims) -> Specs:
        each = lambda init: ParamSpec((self.heads,), ("heads",), init, decay=False)
        return {
            **super().params(dims),
            "z": ParamSpec((dims.width, self.heads, self.widths(dims)[1]), ("embed", "heads", None)),
            "a": ParamSpec((dims.width, self.heads), ("embed", "heads")),
            "A_log": each(LogOfUniform(*self.a_range)),
            "dt_bias": each(StepBias(*self.dt_range)),
        }

    def log_decay(self, p: Params, x_BLD: jax.Array) -> jax.Array:
        step = jax.nn.softplus(dense(x_BLD, p["a"], dtype=jnp.float32) + p["dt_bias"].astype(jnp.float32))
        return -jnp.exp(p["A_log"].astype(jnp.float32)) * step

    def gate(self, p: Params, x_BLD: jax.Array, out: jax.Array) -> jax.Array:
        return out * jax.nn.silu(dist.constrain(dense(x_BLD, p["z"]), ("batch", "length", "heads", None)))
