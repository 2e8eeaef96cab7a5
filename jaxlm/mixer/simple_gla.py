"""Simple gated linear attention: a state that fades by one number per head, which the token decides on.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t / sqrt(K)        g_t = log sigmoid(x_t W_a + a) / tau
    out = W (RMSNorm(o) * silu(x W_z)), head by head

GLA (`gla`) with one decay in place of one per key channel, which is what makes a chunk plain matmuls. Learned: the
projections q, k (D, H, K), v, z (D, H, V), those of the decay, the norm's gain.
Claimed: close to GLA in quality, as fast as RetNet (Yang et al. 2024; the flash-linear-attention library).
`experiments.state_space` shows what it recalls for its size.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec, ones, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.linear import Linear
from jaxlm.mixer.recurrent import Stream
from jaxlm.norm.rms import RmsNorm
from jaxlm.ops.dense import dense
from jaxlm.ops.scalar_decay import scalar_decay


@dataclasses.dataclass(frozen=True)
class SimpleGla(Linear):
    """Simple gated linear attention.

    Attributes:
      heads: H, a divisor of the width.
      key_expand: width of all keys together over the model's.
      tau: what the logarithm of the decay is divided by; larger ones remember longer.
      norm_eps: of the norm of each head's output.
      chunk, implementation: of `Linear`.
    """

    paper: ClassVar[str] = "Yang et al. 2024, Gated Linear Attention Transformers with Hardware-Efficient Training"
    op: ClassVar[Any] = staticmethod(scalar_decay)

    heads: int = 4
    key_expand: float = 0.5
    tau: float = 16.0
    norm_eps: float = 1e-5

    def check(self) -> None:
        super().check()
        require(self.heads > 0, f"SimpleGla.heads: expected a positive integer, got {self.heads}")
        for name in ("key_expand", "tau"):
            require(getattr(self, name) > 0, f"SimpleGla.{name}: expected a positive number, got {getattr(self, name)}")
        require(self.norm_eps >= 0, f"SimpleGla.norm_eps: expected a number >= 0, got {self.norm_eps}")

    def _widths(self, dims: Dims) -> tuple[int, int]:
        """K and V."""
        require(
            dims.width % self.heads == 0,
            f"SimpleGla.heads: model width {dims.width} is not divisible by {self.heads}",
        )
        key = self.key_expand * dims.width / self.heads
        require(
            key == int(key),
            f"SimpleGla.key_expand: {self.key_expand} x width {dims.width} is not a multiple of {self.heads} heads",
        )
        return int(key), dims.width // self.heads

    def params(self, dims: Dims) -> Specs:
        (key, value), model = self._widths(dims), dims.width
        by_head = ("embed", "heads", None)
        return {
            "q": ParamSpec((model, self.heads, key), by_head),
            "k": ParamSpec((model, self.heads, key), by_head),
            "v": ParamSpec((model, self.heads, value), by_head),
            "gate": ParamSpec((model, self.heads, value), by_head),
            "decay": ParamSpec((model, self.heads), ("embed", "heads")),
            "decay_bias": ParamSpec((self.heads,), ("heads",), zeros, decay=False),
            "norm": ParamSpec((value,), (None,), ones, decay=False),
            "out": ParamSpec((self.heads, value, model), ("heads", None, "embed"), fan_in=(0, 1)),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self.heads, *self._widths(dims))}

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        by_head = ("batch", "length", "heads", None)
        q, k, v, z = (dist.constrain(dense(x_BLD, p[name]), by_head) for name in ("q", "k", "v", "gate"))
        decay = dense(x_BLD, p["decay"], dtype=jnp.float32) + p["decay_bias"].astype(jnp.float32)
        log_decay = jax.nn.log_sigmoid(decay) / self.tau
        out, stream = self.run(stream, q * q.shape[-1] ** -0.5, k, v, log_decay)
        out = RmsNorm(self.norm_eps)({"scale": p["norm"]}, out) * jax.nn.silu(z)
        return dense(out, p["out"], inputs=2), stream
