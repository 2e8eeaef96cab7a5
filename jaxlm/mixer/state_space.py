"""What S4 and S4D share: a system per feature, run as a convolution or as a recurrence, and what follows it.

    y = C x + D u        out = (y' W + c) * sigmoid(y' V + d),  y' = gelu(y)

A full pass convolves with the system's kernel; pieces and steps, which begin with a state, run it token by token.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import Normal, ParamSpec, Uniform, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.decays import check_range
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.ops.activation import gelu
from jaxlm.ops.dense import dense
from jaxlm.ops.fft_conv import fft_conv
from jaxlm.ops.s4_kernel import System, advance
from jaxlm.ops.segments import Rows

IMPLEMENTATIONS = ("xla", "reference")


@dataclasses.dataclass(frozen=True)
class StateSpace(Recurrent):
    """The base of `S4` and `S4d`, which give `matrices`, `system` and `kernel`.

    Attributes:
      state: N, an even number, of each feature.
      copies: different matrices, a divisor of the width; feature h uses those of copy h mod ``copies``.
      step_range: initial step sizes lie between these two.
      bidirectional: a second output matrix reads what comes later; such a layer cannot stream.
      chunk: tokens between the states that the backward pass of the recurrence starts from.
      implementation: of a full pass, ``"xla"`` (a convolution), ``"reference"`` (the recurrence) or ``"auto"``.
    """

    paper: ClassVar[str] = ""

    state: int = 64
    copies: int = 1
    step_range: tuple[float, float] = (1e-3, 1e-1)
    bidirectional: bool = False
    chunk: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        name = type(self).__name__
        even = self.state > 0 and self.state % 2 == 0
        require(even, f"{name}.state: expected a positive even number, got {self.state}")
        require(self.copies > 0, f"{name}.copies: expected a positive integer, got {self.copies}")
        require(self.chunk > 0, f"{name}.chunk: expected a positive integer, got {self.chunk}")
        check_range(f"{name}.step_range", self.step_range)
        choose(f"{name}.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return not self.bidirectional

    def matrices(self, shape: tuple[int, int]) -> Specs:
        """Of A and B, arrays [copies, N / 2, ...]."""
        raise NotImplementedError

    def system(self, p: Params, c: jax.Array, dt: jax.Array) -> System:
        """The discrete system of D features, with the output matrix c complex64 [D, N / 2]."""
        raise NotImplementedError

    def kernel(self, system: Any, length: int) -> jax.Array:
        """[L, D]."""
        raise NotImplementedError

    def params(self, dims: Dims) -> Specs:
        name, width = type(self).__name__, dims.width
        require(width % self.copies == 0, f"{name}.copies: model width {width} is not divisible by {self.copies}")
        shape = (width, self.state // 2, 2)
        specs = self.matrices((self.copies, self.state // 2))
        specs["log_dt"] = ParamSpec((width,), ("heads",), Uniform(*map(math.log, self.step_range)), decay=False)
        for c in ("c", "c_later")[: 1 + self.bidirectional]:
            specs[c] = ParamSpec(shape, ("heads", None, None), Normal(0.5**0.5))
        specs["skip"] = ParamSpec((width,), ("heads",), Normal(1.0), decay=False)
        specs["out"] = ParamSpec((width, width, 2), ("heads", "embed", None))
        specs["out_bias"] = ParamSpec((width, 2), ("embed", None), zeros, decay=False)
        return specs

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (dims.width, self.state // 2, 2)}

    def flops(self, dims: Dims, length: int) -> float:
        """Fourier transforms of twice the length, forth and back, per token."""
        return (1 + self.bidirectional) * dims.width * 10.0 * max(length, 2).bit_length()

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        u = dist.constrain(x_BLD, ("batch", None, "heads")).astype(jnp.float32)
        f32 = lambda name: p[name].astype(jnp.float32)
        dt = jnp.exp(f32("log_dt"))
        system = self.system(p, to_complex(f32("c")), dt)
        y, stream = self._run(system, u, stream)
        if self.bidirectional:
            later = self.system(p, to_complex(f32("c_later")), dt)
            back = Stream(reversed_rows(stream.rows), None, None, {})
            nothing = jnp.zeros(p["c"].shape[:2], jnp.complex64)
            own = later.read(later.step(nothing, jnp.ones_like(dt)))  # of the token itself, which y has
            y = y + self._run(later, u[:, ::-1], back)[0][:, ::-1] - own * u
        y = gelu(y + f32("skip") * u).astype(x_BLD.dtype)
        out = dense(y, p["out"]) + p["out_bias"].astype(y.dtype)
        return out[..., 0] * jax.nn.sigmoid(out[..., 1]), stream

    def _run(self, system: System, u: jax.Array, stream: Stream) -> tuple[jax.Array, Stream]:
        if stream.memory is None and self.implementation != "reference":
            return fft_conv(u, self.kernel(system, u.shape[1]), rows=stream.rows), stream
        state = None if stream.memory is None else to_complex(stream.memory["state"])
        y, state = advance(system, u, rows=stream.rows, state=state, states=self.state // 2, chunk=self.chunk)
        return y, stream.remember(state=to_real(state))


def to_complex(pairs: jax.Array) -> jax.Array:
    """[..., 2] -> complex [...]. Parameters and states are stored as pairs: optimisers know no complex numbers."""
    return jax.lax.complex(pairs[..., 0], pairs[..., 1])


def to_real(x: jax.Array) -> jax.Array:
    """Complex [...] -> [..., 2]."""
    return jnp.stack((jnp.real(x), jnp.imag(x)), -1)


def reversed_rows(rows: Rows | None) -> Rows | None:
    """What rows are when they are read from their ends."""
    return None if rows is None else Rows(rows.real[:, ::-1], (rows.epoch[:, -1:] - rows.epoch)[:, ::-1])
