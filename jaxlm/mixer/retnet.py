"""RetNet: multi-scale retention, linear attention whose heads forget at fixed rates.

    S_t = gamma_h S_{t-1} + k_t v_t^T        o_t = S_t^T q_t / sqrt(K)        gamma_h = 1 - 2^(-5 - h), h = 0, 1, ...
    out = W (GroupNorm(o) * silu(x W_z)), head by head, the norm without gain or bias

q and k are turned by their positions (rotary). Of xPos, whose scaling the paper writes with the rotation, the decay is
gamma's. Learned: the projections q, k (D, H, K), v, z (D, H, V) and W.
Claimed: trains in parallel, decodes in O(1), and matches Transformers from 2.7B parameters on (Sun et al. 2023).
`experiments.state_space` shows what it recalls for its size.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.linear import Linear
from jaxlm.mixer.recurrent import Stream
from jaxlm.norm.layer import LayerNorm
from jaxlm.ops.dense import dense
from jaxlm.ops.rotary import PAIRINGS, angles, inverse_frequencies, turn
from jaxlm.ops.scalar_decay import scalar_decay


def log_decays(heads: int) -> np.ndarray:
    """ln gamma_h, float32 [H]; rounded once, since 1 - gamma loses digits in float32."""
    return np.log1p(-(2.0 ** (-5.0 - np.arange(heads)))).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class RetNet(Linear):
    """Multi-scale retention.

    Attributes:
      heads: H, a divisor of the width.
      value_expand: width of all values together over the model's.
      base: theta of the rotation; 0 for no rotation.
      pairing: of the rotated channels, ``"interleaved"`` as published, or ``"half"``.
      norm_eps: of the norm of each head's output.
      chunk, implementation: of `Linear`.
    """

    paper: ClassVar[str] = "Sun et al. 2023, Retentive Network: A Successor to Transformer for Large Language Models"
    op: ClassVar[Any] = staticmethod(scalar_decay)

    heads: int = 4
    value_expand: int = 2
    base: float = 10_000.0
    pairing: str = "interleaved"
    norm_eps: float = 1e-5

    def check(self) -> None:
        super().check()
        for name in ("heads", "value_expand"):
            require(getattr(self, name) > 0, f"RetNet.{name}: expected a positive integer, got {getattr(self, name)}")
        for name in ("base", "norm_eps"):
            require(getattr(self, name) >= 0, f"RetNet.{name}: expected a number >= 0, got {getattr(self, name)}")
        choose("RetNet.pairing", self.pairing, PAIRINGS)

    def _widths(self, dims: Dims) -> tuple[int, int]:
        """K and V."""
        require(
            dims.width % self.heads == 0, f"RetNet.heads: model width {dims.width} is not divisible by {self.heads}"
        )
        key = dims.width // self.heads
        require(key % 2 == 0 or not self.base, f"RetNet.heads: rotation needs an even head width, got {key}")
        return key, self.value_expand * key

    def params(self, dims: Dims) -> Specs:
        (key, value), model = self._widths(dims), dims.width
        by_head = ("embed", "heads", None)
        return {
            "q": ParamSpec((model, self.heads, key), by_head),
            "k": ParamSpec((model, self.heads, key), by_head),
            "v": ParamSpec((model, self.heads, value), by_head),
            "gate": ParamSpec((model, self.heads, value), by_head),
            "out": ParamSpec((self.heads, value, model), ("heads", None, "embed"), fan_in=(0, 1)),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self.heads, *self._widths(dims))}

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        by_head = ("batch", "length", "heads", None)
        q, k, v, z = (dist.constrain(dense(x_BLD, p[name]), by_head) for name in ("q", "k", "v", "gate"))
        if self.base:
            turns = angles(ctx.positions, inverse_frequencies(self.base, q.shape[-1]))
            q, k = (turn(x, jnp.cos(turns), jnp.sin(turns), self.pairing) for x in (q, k))
        out, stream = self.run(stream, q * q.shape[-1] ** -0.5, k, v, jnp.asarray(log_decays(self.heads)))
        out = LayerNorm(self.norm_eps, bias=False, gain=False)({}, out) * jax.nn.silu(z)
        return dense(out, p["out"], inputs=2), stream
