"""RWKV-4's channel mixing: an MLP that also reads the token before, and so has a state; the half after `rwkv4`.

    r, k = (mu * x_t + (1 - mu) * x_{t-1}) W, with a mu and W each        out = sigmoid(r) * (relu(k)^2 W_v)

Learned: mu and the three projections. Claimed: with time mixing, Transformer quality (Peng et al. 2023). It is a mixer
because an FFN sees one token; a block of it has no FFN.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.mixer.token_shift import Spread, mixed
from jaxlm.ops.activation import activation
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class RwkvChannel(Recurrent):
    """RWKV-4's channel mixing.

    Attributes:
      hidden: width of k; 0 for four times that of the model.
    """

    paper: ClassVar[str] = "Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era"

    hidden: int = 0

    def check(self) -> None:
        require(self.hidden >= 0, f"RwkvChannel.hidden: expected an integer >= 0, got {self.hidden}")

    def params(self, dims: Dims) -> Specs:
        width, hidden = dims.width, self.hidden or 4 * dims.width
        mu = ParamSpec((width,), (None,), Spread(0.0, 1.0, 0.5), decay=False)
        return {
            "mu_k": mu,
            "mu_r": mu,
            "k": ParamSpec((width, hidden), ("embed", "mlp")),
            "r": ParamSpec((width, width), ("embed", None)),
            "v": ParamSpec((hidden, width), ("mlp", "embed")),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {}

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {"shift": (2, (dims.width,))}

    def flops(self, dims: Dims, length: int) -> float:
        """Nothing but matmuls with parameters."""
        return 0.0

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        before, stream = stream.convolve("shift", x_BLD, jnp.asarray([0.0, 1.0]))
        k = dense(mixed(p["mu_k"], x_BLD, before), p["k"])
        k = activation("squared_relu")(dist.constrain(k, ("batch", None, "mlp")))
        gate = jax.nn.sigmoid(dense(mixed(p["mu_r"], x_BLD, before), p["r"]))
        return gate * dense(k, p["v"]), stream.remember()
