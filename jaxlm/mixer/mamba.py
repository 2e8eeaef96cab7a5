"""Mamba: a diagonal state per channel whose step size, input and output come from the token, between a gate's arms.

    x, z = u W_in        x = silu(conv_4(x) + b)        r, B, C = x W_x        dt = softplus(r W_dt + b_dt)
    h_t = exp(dt_t A) h_{t-1} + (dt_t x_t) B_t        y_t = C_t . h_t + D x_t        out = (y * silu(z)) W_out

Jamba norms r, B and C with a gain each (``"rms"``), Falcon-Mamba without (``"plain"``). Learned: the projections, the
convolution, A (as ln(-A), from 1 .. N in every channel), D and b_dt. Claimed: Transformer quality at 5 times the
throughput, and recall over a million tokens (Gu & Dao 2023). `experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec, Uniform, ones, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.decays import StepBias, check_range
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.norm.rms import RmsNorm
from jaxlm.ops.dense import dense
from jaxlm.ops.selective_scan import IMPLEMENTATIONS, selective_scan

NORMS = ("none", "rms", "plain")


@dataclasses.dataclass(frozen=True)
class RealLogs:
    """ln n of the n-th state, from 1: S4D-Real, the same in every channel."""

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        return jnp.broadcast_to(jnp.log(jnp.arange(1, spec.shape[-1] + 1, dtype=jnp.float32)), spec.shape)


@dataclasses.dataclass(frozen=True)
class Mamba(Recurrent):
    """Mamba (the first).

    Attributes:
      state: N, of each channel.
      expand: channels per width of the model.
      conv: tokens that the convolution reads; conv_bias: whether it has one.
      bias: whether the projections in and out have one.
      dt_rank: of the way from channels to step sizes; 0 for a sixteenth of the model's width.
      inner_norm: of what the step sizes come from, B and C: ``"none"``, ``"rms"``, or ``"plain"`` for one without gain.
      norm_eps: of those.
      step_range, step_floor: initial step sizes are log-uniform between those two, and at least the latter.
      chunk, implementation: of `jaxlm.ops.selective_scan`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces"
    # Steps large enough for small models on short rows to learn recall from within a few hundred updates.
    presets: ClassVar[dict[str, dict[str, Any]]] = {"toy": {"step_range": (0.05, 0.5)}}

    state: int = 16
    expand: float = 2.0
    conv: int = 4
    conv_bias: bool = True
    bias: bool = False
    dt_rank: int = 0
    inner_norm: str = "none"
    norm_eps: float = 1e-6
    step_range: tuple[float, float] = (1e-3, 1e-1)
    step_floor: float = 1e-4
    chunk: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        for name in ("state", "conv", "chunk"):
            require(getattr(self, name) > 0, f"Mamba.{name}: expected a positive integer, got {getattr(self, name)}")
        require(self.expand > 0, f"Mamba.expand: expected a number > 0, got {self.expand}")
        require(self.dt_rank >= 0, f"Mamba.dt_rank: expected an integer >= 0, got {self.dt_rank}")
        require(self.norm_eps >= 0, f"Mamba.norm_eps: expected a number >= 0, got {self.norm_eps}")
        require(self.step_floor > 0, f"Mamba.step_floor: expected a number > 0, got {self.step_floor}")
        check_range("Mamba.step_range", self.step_range)
        choose("Mamba.inner_norm", self.inner_norm, NORMS)
        choose("Mamba.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    def _channels(self, dims: Dims) -> int:
        return int(self.expand * dims.width)

    def params(self, dims: Dims) -> Specs:
        model, channels, rank = dims.width, self._channels(dims), self.dt_rank or -(-dims.width // 16)
        edge = lambda size: Uniform(-(size**-0.5), size**-0.5)
        by_channel = lambda init: ParamSpec((channels,), ("heads",), init, decay=False)
        specs: Specs = {
            "in": ParamSpec((model, 2, channels), ("embed", None, "heads")),
            "conv": ParamSpec((self.conv, channels), (None, "heads"), edge(self.conv)),
            "x": ParamSpec((channels, rank + 2 * self.state), ("heads", None)),
            "dt": ParamSpec((rank, channels), (None, "heads"), edge(rank)),
            "dt_bias": by_channel(StepBias(*self.step_range, floor=self.step_floor)),
            "a_log": ParamSpec((channels, self.state), ("heads", None), RealLogs(), decay=False),
            "skip": by_channel(ones),
            "out": ParamSpec((channels, model), ("heads", "embed")),
        }
        if self.conv_bias:
            specs["conv_bias"] = by_channel(edge(self.conv))
        if self.bias:
            specs["in_bias"] = ParamSpec((2, channels), (None, "heads"), zeros, decay=False)
            specs["out_bias"] = ParamSpec((model,), (None,), zeros, decay=False)
        if self.inner_norm == "rms":
            for name, size in (("dt_norm", rank), ("b_norm", self.state), ("c_norm", self.state)):
                specs[name] = RmsNorm().params(size)
        return specs

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self._channels(dims), self.state)}

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {"conv": (self.conv, (self._channels(dims),))}

    def flops(self, dims: Dims, length: int) -> float:
        """Discretisation, scan and readout per token."""
        del length
        return 7.0 * self._channels(dims) * self.state

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        wide = dense(x_BLD, p["in"])
        if self.bias:
            wide = wide + p["in_bias"].astype(wide.dtype)
        wide = dist.constrain(wide, ("batch", None, None, "heads"))
        x, stream = stream.convolve("conv", wide[..., 0, :], p["conv"])
        x = jax.nn.silu(x + p["conv_bias"].astype(x.dtype) if self.conv_bias else x)
        rank = p["dt"].shape[0]
        low, b, c = jnp.split(dense(x, p["x"]), (rank, rank + self.state), -1)
        low, b, c = (self._normed(p, name, y) for name, y in (("dt_norm", low), ("b_norm", b), ("c_norm", c)))
        dt = jax.nn.softplus(dense(low, p["dt"]).astype(jnp.float32) + p["dt_bias"].astype(jnp.float32))
        y, state = selective_scan(
            x,
            dt,
            -jnp.exp(p["a_log"].astype(jnp.float32)),
            b[:, :, None],
            c[:, :, None],
            d=p["skip"],
            rows=stream.rows,
            state=None if stream.memory is None else stream.memory["state"],
            chunk=self.chunk,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        y = dense(y * jax.nn.silu(wide[..., 1, :]), p["out"])
        if self.bias:
            y = y + p["out_bias"].astype(y.dtype)
        return y, stream.remember(state=state)

    def _normed(self, p: Params, name: str, x: jax.Array) -> jax.Array:
        if self.inner_norm == "none":
            return x
        gain = self.inner_norm == "rms"
        return RmsNorm(eps=self.norm_eps, gain=gain)(p[name] if gain else {}, x)
