"""Long short-term memory, the recurrence that attention replaced.

    i, f, o = sigmoid(.), g = tanh(.)   of   x_t W + h_{t-1} R + b        c_t = f c_{t-1} + i g      h_t = o tanh(c_t)

and y = h U. Learned: W (D, 4, N), R (N, 4, N), the bias, U (N, D). The forget gate starts open (bias 1: Gers et al.
2000, Jozefowicz et al. 2015), so that a memory lives from the first step on.

Claimed: gradients through hundreds of steps (Hochreiter and Schmidhuber 1997). `experiments.state_space` shows how
little of a list it keeps word by word, and what reversing the source does for it (Sutskever et al. 2014).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.ops.dense import dense
from jaxlm.ops.lstm import lstm


@dataclasses.dataclass(frozen=True)
class GateBias:
    """0, but ``forget`` for the forget gate, the second of four."""

    forget: float

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        return jnp.zeros(spec.shape, jnp.float32).at[1].set(self.forget)


@dataclasses.dataclass(frozen=True)
class Lstm(Recurrent):
    """Long short-term memory.

    Attributes:
      expand: N, the numbers in each of h and c, relative to the model's width.
      forget_bias: of the forget gate, at first.
    """

    paper: ClassVar[str] = "Hochreiter and Schmidhuber 1997, Long Short-Term Memory"

    expand: float = 1.0
    forget_bias: float = 1.0

    def check(self) -> None:
        require(self.expand > 0, f"Lstm.expand: expected a positive number, got {self.expand}")

    def _size(self, dims: Dims) -> int:
        size = self.expand * dims.width
        require(size == int(size), f"Lstm.expand: {self.expand} times the model width {dims.width} is no whole number")
        return int(size)

    def params(self, dims: Dims) -> Specs:
        size = self._size(dims)
        return {
            "input": ParamSpec((dims.width, 4, size), ("embed", None, "mlp")),
            "recurrent": ParamSpec((size, 4, size), (None, None, "mlp")),
            "bias": ParamSpec((4, size), (None, "mlp"), GateBias(self.forget_bias), decay=False),
            "out": ParamSpec((size, dims.width), ("mlp", "embed")),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        size = self._size(dims)
        return {"h": (size,), "c": (size,)}

    def flops(self, dims: Dims, length: int) -> float:
        """The gates' products are with parameters; what is left are a few operations per number."""
        del length
        return 10.0 * self._size(dims)

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        state = None if stream.memory is None else (stream.memory["h"], stream.memory["c"])
        y, (h, c) = lstm(x_BLD, p["input"], p["recurrent"], p["bias"], rows=stream.rows, state=state)
        return dense(y, p["out"]), stream.remember(h=h, c=c)
