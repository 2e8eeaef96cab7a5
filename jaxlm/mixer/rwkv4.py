"""RWKV-4's time mixing: an average of values, weighted by keys and by how long ago, that a recurrence can run.

    r, k, v = (mu * x_t + (1 - mu) * x_{t-1}) W, with a mu and W each
    wkv_t = (sum_{j<t} e^{k_j - (t-1-j) w} v_j + e^{u + k_t} v_t) / (the same sums without v)        w = exp(decay)
    out = (sigmoid(r) * wkv) W_out

Sums are kept with their greatest exponent, so that no exponential overflows. Learned: mu, the projections, decay and u,
the bonus of the current token, channel by channel. Claimed: Transformer quality with a state of three numbers per
channel (Peng et al. 2023). The layer's other half is `rwkv_channel`; each is a block without FFN.
`experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.mixer.token_shift import Spread, mixed
from jaxlm.ops.dense import dense
from jaxlm.ops.wkv import IMPLEMENTATIONS, Sums, wkv


@dataclasses.dataclass(frozen=True)
class ZigZag:
    """ln 0.3, and 0.5 more or less than that in two of three channels."""

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        return jnp.log(0.3) + 0.5 * ((jnp.arange(spec.shape[0]) + 1) % 3 - 1.0)


@dataclasses.dataclass(frozen=True)
class Rwkv4(Recurrent):
    """RWKV-4's time mixing. Initial values are those that the authors give the layer in the middle.

    Attributes:
      width: channels of the recurrence; 0 for those of the model.
      chunk, implementation: of `jaxlm.ops.wkv`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era"

    width: int = 0
    chunk: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        require(self.width >= 0, f"Rwkv4.width: expected an integer >= 0, got {self.width}")
        require(self.chunk > 0, f"Rwkv4.chunk: expected a positive integer, got {self.chunk}")
        choose("Rwkv4.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    def params(self, dims: Dims) -> Specs:
        model, width = dims.width, self.width or dims.width
        mu = lambda init: ParamSpec((model,), (None,), init, decay=False)
        by_channel = lambda init: ParamSpec((width,), ("heads",), init, decay=False)
        return {
            "mu_k": mu(Spread(0.0, 1.0, 0.5)),
            "mu_v": mu(Spread(0.15, 1.15, 0.5)),
            "mu_r": mu(Spread(0.0, 1.0, 0.25)),
            **{name: ParamSpec((model, width), ("embed", "heads")) for name in ("k", "v", "r")},
            "decay": by_channel(Spread(-5.0, 3.0, 1.35)),
            "bonus": by_channel(ZigZag()),
            "out": ParamSpec((width, model), ("heads", "embed")),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(Sums._fields, (self.width or dims.width,))

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {"shift": (2, (dims.width,))}

    def flops(self, dims: Dims, length: int) -> float:
        """The recurrence per token; the rest are matmuls with parameters."""
        del length
        return 16.0 * (self.width or dims.width)

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        before, stream = stream.convolve("shift", x_BLD, jnp.asarray([0.0, 1.0]))
        project = lambda name: dist.constrain(
            dense(mixed(p[f"mu_{name}"], x_BLD, before), p[name]), ("batch", None, "heads")
        )
        out, sums = wkv(
            project("k"),
            project("v"),
            -jnp.exp(p["decay"].astype(jnp.float32)),
            p["bonus"],
            rows=stream.rows,
            state=None if stream.memory is None else Sums(**stream.memory),
            chunk=self.chunk,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        return dense(jax.nn.sigmoid(project("r")) * out, p["out"]), stream.remember(**sums._asdict())
