"""Mamba-2: a state of matrices that fades by one number per head and token, as long as that token's step says.

    z, x, b, c, dt = projections of the input;   x, b, c <- silu(conv(.) + bias);   dt <- softplus(dt + dt_bias)
    S_t = exp(-dt_t exp(A_log)) S_{t-1} + b_t (dt_t x_t)^T          y_t = S_t^T c_t + D x_t
    out = W RMSNorm(y * silu(z))

Heads of a group share b and c, and the norm is taken over a group; Falcon-H1 gates what is normed, or has no norm.
Learned: projections, convolutions, A_log, D and dt_bias per head, the norm's gain. Steps are clamped to ``step_limit``
on every path.

Claimed: the quality of Mamba-1 with states 8 times as large, in matmuls (Dao and Gu 2024). `experiments.state_space`
shows what it recalls for its size, and how it fails beyond the length it was trained on.
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
from jaxlm.core.params import FanIn, ParamSpec, Uniform, ones, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.decays import LogOfUniform, StepBias, check_range
from jaxlm.mixer.linear import Linear
from jaxlm.mixer.recurrent import Stream
from jaxlm.norm.rms import RmsNorm
from jaxlm.ops.dense import dense
from jaxlm.ops.scalar_decay import scalar_decay

NORMS = ("gated", "before_gate", "none")
PROJECTIONS = ("z", "x", "b", "c", "dt")
UNLIMITED = (0.0, math.inf)


@dataclasses.dataclass(frozen=True)
class Mamba2(Linear):
    """The mixer of Mamba-2.

    Attributes:
      state: N, width of b and c.
      expand: width of all heads together over the model's.
      bias: whether the projections in and out have one.
      scales: factors of z, x, b, c and dt as projected (muP, Falcon-H1); empty for 1.
      norm: ``"gated"`` RMSNorm(y * silu(z)), ``"before_gate"`` RMSNorm(y) * silu(z), or ``"none"`` for y * silu(z).
      head_dim: P, width of a head.
      groups: G, of heads that share b and c.
      conv: tokens that the convolution reads; 1 for no convolution.
      conv_bias: whether it has a bias.
      step_range: of dt at first, log-uniform.
      decay_range: of exp(A_log) at first, uniform.
      step_limit: least and greatest dt.
      norm_eps: of the gated norm.
      chunk, implementation: of `Linear`.
    """

    paper: ClassVar[str] = "Dao and Gu 2024, Transformers are SSMs: State Space Duality"
    op: ClassVar[Any] = staticmethod(scalar_decay)
    # Steps large enough for small models on short rows to learn recall from within a few hundred updates.
    presets: ClassVar[dict[str, dict[str, Any]]] = {"toy": {"step_range": (0.05, 0.5), "decay_range": (0.02, 1.0)}}

    state: int = 128
    expand: float = 2.0
    head_dim: int = 64
    groups: int = 1
    conv: int = 4
    conv_bias: bool = True
    bias: bool = False
    scales: tuple[float, ...] = ()
    norm: str = "gated"
    step_range: tuple[float, float] = (1e-3, 1e-1)
    decay_range: tuple[float, float] = (1.0, 16.0)
    step_limit: tuple[float, float] = UNLIMITED
    norm_eps: float = 1e-5

    def check(self) -> None:
        super().check()
        for name in ("state", "expand", "head_dim", "groups", "conv"):
            require(getattr(self, name) > 0, f"Mamba2.{name}: expected a positive integer, got {getattr(self, name)}")
        choose("Mamba2.norm", self.norm, NORMS)
        require(
            len(self.scales) in (0, len(PROJECTIONS)),
            f"Mamba2.scales: expected one of each of {', '.join(PROJECTIONS)}, or none, got {self.scales}",
        )
        check_range("Mamba2.step_range", self.step_range)
        check_range("Mamba2.decay_range", self.decay_range)
        low, high = self.step_limit
        require(0 <= low < high, f"Mamba2.step_limit: expected 0 <= low < high, got {self.step_limit}")
        require(self.norm_eps >= 0, f"Mamba2.norm_eps: expected a number >= 0, got {self.norm_eps}")

    def _heads(self, dims: Dims) -> int:
        inner = round(self.expand * dims.width)
        require(
            inner > 0 and inner % self.head_dim == 0 and inner // self.head_dim % self.groups == 0,
            f"Mamba2.head_dim: {self.expand:g} x model width {dims.width} = {inner} is not a multiple of "
            f"{self.head_dim} x {self.groups} groups",
        )
        return inner // self.head_dim

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        if self.conv == 1:
            return {}
        wide, shared = (self._heads(dims), self.head_dim), (self.groups, self.state)
        return {"x": (self.conv, wide), "b": (self.conv, shared), "c": (self.conv, shared)}

    def params(self, dims: Dims) -> Specs:
        heads, model = self._heads(dims), dims.width
        wide, shared = (heads, self.head_dim), (self.groups, self.state)
        specs: Specs = {
            **{name: ParamSpec((model, *wide), ("embed", "heads", None)) for name in ("z", "x")},
            **{name: ParamSpec((model, *shared), ("embed", None, None)) for name in ("b", "c")},
            "dt": ParamSpec((model, heads), ("embed", "heads")),
        }
        uniform = Uniform(-(self.conv**-0.5), self.conv**-0.5)
        for name, (taps, shape) in self.taps(dims).items():
            axes = ("heads" if name == "x" else None, None)
            specs[f"conv_{name}"] = ParamSpec((taps, *shape), (None, *axes), uniform)
            if self.conv_bias:
                specs[f"conv_{name}_bias"] = ParamSpec(shape, axes, uniform, decay=False)
        specs["a_log"] = ParamSpec((heads,), ("heads",), LogOfUniform(*self.decay_range), decay=False)
        specs["dt_bias"] = ParamSpec((heads,), ("heads",), StepBias(*self.step_range), decay=False)
        specs["skip"] = ParamSpec((heads,), ("heads",), ones, decay=False)
        if self.norm != "none":
            specs["norm"] = ParamSpec(wide, ("heads", None), ones, decay=False)
        if self.bias:
            for name in PROJECTIONS:
                shape, axes = specs[name].shape[1:], specs[name].axes[1:]
                specs[f"in_{name}_bias"] = ParamSpec(shape, axes, zeros, decay=False)
            specs["out_bias"] = ParamSpec((model,), (None,), zeros, decay=False)
        specs["out"] = ParamSpec((*wide, model), ("heads", None, "embed"), FanIn(), fan_in=(0, 1))
        return specs

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self._heads(dims), self.state, self.head_dim)}

    def flops(self, dims: Dims, length: int) -> float:
        """Within a chunk, into the state and out of it, per token; and the convolutions."""
        del length
        heads, chunk = self._heads(dims), self.chunk
        within = chunk * (self.groups * self.state + heads * self.head_dim)
        channels = heads * self.head_dim + 2 * self.groups * self.state
        return 2.0 * within + 4.0 * heads * self.state * self.head_dim + 2.0 * self.conv * channels

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        by_head = ("batch", "length", "heads", None)
        z, x = (dist.constrain(self._project(p, name, x_BLD), by_head) for name in ("z", "x"))
        b, c = self._project(p, "b", x_BLD), self._project(p, "c", x_BLD)
        x, stream = self._convolved(p, "x", x, stream)
        b, stream = self._convolved(p, "b", b, stream)
        c, stream = self._convolved(p, "c", c, stream)
        step = jax.nn.softplus(self._project(p, "dt", x_BLD, jnp.float32) + p["dt_bias"].astype(jnp.float32))
        if self.step_limit != UNLIMITED:
            step = jnp.clip(step, *self.step_limit)
        decay = -step * jnp.exp(p["a_log"].astype(jnp.float32))
        y, stream = self.recur(c, b, x.astype(jnp.float32) * step[..., None], decay, stream)
        y = y + x * p["skip"].astype(jnp.float32)[:, None]
        gate = jax.nn.silu(z.astype(jnp.float32))
        if self.norm == "gated":
            y = self._normed(p, y * gate)
        else:
            y = (self._normed(p, y) if self.norm == "before_gate" else y) * gate
        y = dense(y.astype(x_BLD.dtype), p["out"], inputs=2)
        return y + p["out_bias"].astype(y.dtype) if self.bias else y, stream

    def _project(self, p: Params, name: str, x: jax.Array, dtype: Any = None) -> jax.Array:
        """One of z, x, b, c and dt of the input."""
        y = dense(x, p[name], dtype=dtype)
        if self.bias:
            y = y + p[f"in_{name}_bias"].astype(y.dtype)
        return y * self.scales[PROJECTIONS.index(name)] if self.scales else y

    def _normed(self, p: Params, y: jax.Array) -> jax.Array:
        """RMSNorm over the heads of a group, float32 [B, L, H, P]."""
        wide = y.reshape(*y.shape[:2], self.groups, -1)
        return RmsNorm(self.norm_eps, gain=False)({}, wide).reshape(y.shape) * p["norm"].astype(jnp.float32)

    def recur(
        self, c: jax.Array, b: jax.Array, v: jax.Array, log_decay: jax.Array, stream: Stream
    ) -> tuple[jax.Array, Stream]:
        """`scalar_decay` of these tokens after those before, and the stream with the new state. What forgets in another
        way overrides this alone."""
        return self.run(stream, c, b, v, log_decay)

    def _convolved(self, p: Params, name: str, x: jax.Array, stream: Stream) -> tuple[jax.Array, Stream]:
        """silu(conv(x) + bias), and the stream after it."""
        if self.conv > 1:
            x, stream = stream.convolve(name, x, p[f"conv_{name}"])
            if self.conv_bias:
                x = x + p[f"conv_{name}_bias"].astype(x.dtype)
        return jax.nn.silu(x), stream
