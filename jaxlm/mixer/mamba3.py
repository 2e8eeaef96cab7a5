"""Mamba-3, of one value a head (SISO): Mamba-2 with a trapezoid for its sum, turned keys, and no convolution.

    z, v, B, C, dt, a, l, angle from x      dt = softplus(dt + b)   g = -f(a) dt, f(a) = 1 + a, or 1 / (1 - a) if a < 0
    k, q = norm(B) + b_k, norm(C) + b_q of each head, turned by theta_t = theta_{t-1} + pi tanh(angle) dt
    S_t = e^g S_{t-1} + (1 - s(l)) dt e^g k_{t-1} v_{t-1}^T + s(l) dt k_t v_t^T, s = sigmoid    o_t = q_t^T S_t + D v_t
    y = U (o silu(z))

Learned: the projections (those of B, C and the angles are shared by heads), gains of the two norms, b_k and b_q, b, D.
Claimed: states tracked that real decays cannot, and a better loss than Mamba-2 at half its state (Mamba-3, 2026; read
from the public reference). `experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec, ones
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.decays import StepBias, check_range
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.norm.rms import RmsNorm
from jaxlm.ops.dense import dense
from jaxlm.ops.mamba3 import IMPLEMENTATIONS, Memory, mamba3

NORM = RmsNorm(eps=1e-5)
LEAST_DECAY = 1e-4  # of -A: what a token leaves behind fades, however slowly


@dataclasses.dataclass(frozen=True)
class Mamba3(Recurrent):
    """Mamba-3.

    Attributes:
      state: N, channels of keys and queries.
      head_dim: P, channels of a head's values.
      expand: channels of all heads' values together, relative to the model's width.
      groups: of heads that share their keys and queries, but for the biases.
      turned: the share of the N channels that turn.
      step_range: of dt at first, log-uniform.
      chunk: tokens that meet each other as matrices.
      implementation: a back end of `jaxlm.ops.mamba3`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Mamba-3 2026 (SISO, as in its public reference)"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"toy": {"step_range": (0.05, 0.5)}}

    state: int = 128
    head_dim: int = 64
    expand: float = 2.0
    groups: int = 1
    turned: float = 0.5
    step_range: tuple[float, float] = (1e-3, 1e-1)
    chunk: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        for name in ("state", "head_dim", "expand", "groups", "chunk"):
            value = getattr(self, name)
            require(value > 0, f"Mamba3.{name}: expected a positive number, got {value}")
        require(0 <= self.turned <= 1, f"Mamba3.turned: allowed 0..1, got {self.turned}")
        require(
            self.state * self.turned % 2 == 0,
            f"Mamba3.turned: {self.turned} of state {self.state} is no whole number of pairs of channels",
        )
        check_range("Mamba3.step_range", self.step_range)
        choose("Mamba3.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    @property
    def pairs(self) -> int:
        """A, channels that turn, in pairs."""
        return int(self.state * self.turned) // 2

    def _heads(self, dims: Dims) -> int:
        inner = self.expand * dims.width
        require(
            inner % self.head_dim == 0,
            f"Mamba3.head_dim: {self.expand} times the model width {dims.width} is not divisible by {self.head_dim}",
        )
        heads = int(inner) // self.head_dim
        require(heads % self.groups == 0, f"Mamba3.groups: expected a divisor of {heads} heads, got {self.groups}")
        return heads

    def params(self, dims: Dims) -> Specs:
        heads, width = self._heads(dims), dims.width
        each = lambda init: ParamSpec((heads,), ("heads",), init, decay=False)
        specs: Specs = {
            "zv": ParamSpec((width, heads, 2, self.head_dim), ("embed", "heads", None, None)),
            "qk": ParamSpec((width, self.groups, 2, self.state), ("embed", None, None, None)),
            "gates": ParamSpec((width, heads, 3), ("embed", "heads", None)),  # dt, a, trapezoid
            "q_norm": NORM.params(self.state),
            "k_norm": NORM.params(self.state),
            "q_bias": ParamSpec((heads, self.state), ("heads", None), ones, decay=False),
            "k_bias": ParamSpec((heads, self.state), ("heads", None), ones, decay=False),
            "dt_bias": each(StepBias(*self.step_range)),
            "D": each(ones),
            "out": ParamSpec((heads, self.head_dim, width), ("heads", None, "embed"), fan_in=(0, 1)),
        }
        if self.pairs:
            specs["angles"] = ParamSpec((width, self.pairs), ("embed", None))
        return specs

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        heads = self._heads(dims)
        angle = {"angle": (heads, self.pairs)} if self.pairs else {}
        state = {"state": (heads, self.state, self.head_dim)}
        return {**angle, **state, "k": (heads, self.state), "v": (heads, self.head_dim)}

    def flops(self, dims: Dims, length: int) -> float:
        """Within a chunk, into the state and out of it, per token."""
        del length
        within = 2.0 * self.chunk * (self.state + self.head_dim)
        return self._heads(dims) * (within + 4.0 * self.state * self.head_dim)

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        zv = dist.constrain(dense(x_BLD, p["zv"]), ("batch", None, "heads", None, None))
        z, v = zv[..., 0, :], zv[..., 1, :]
        qk = dense(x_BLD, p["qk"])
        gates = dense(x_BLD, p["gates"], dtype=jnp.float32)
        heads = gates.shape[2]
        q, k = (
            jnp.repeat(NORM(p[f"{name}_norm"], qk[..., i, :]), heads // self.groups, 2) + p[f"{name}_bias"]
            for i, name in enumerate("qk")
        )
        dt = jax.nn.softplus(gates[..., 0] + p["dt_bias"])
        a = gates[..., 1]
        speed = jnp.where(a >= 0, 1 + a, 1 / (1 - jnp.minimum(a, 0)))
        shape = (*x_BLD.shape[:2], heads, self.pairs)
        angles = jnp.zeros(shape, jnp.float32)
        if self.pairs:
            angles = jnp.broadcast_to(dense(x_BLD, p["angles"], dtype=jnp.float32)[:, :, None], shape)
        before = stream.memory
        if before is not None:
            empty = jnp.zeros((shape[0], heads, 0), jnp.float32)
            before = Memory(before.get("angle", empty), before["state"], before["k"], before["v"])
        out, after = mamba3(
            q,
            k,
            v,
            -jnp.maximum(speed, LEAST_DECAY) * dt,
            dt,
            gates[..., 2],
            angles,
            rows=stream.rows,
            memory=before,
            chunk=self.chunk,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        out = (out + p["D"][:, None] * v).astype(x_BLD.dtype) * jax.nn.silu(z)
        kept = after._asdict()
        return dense(out, p["out"], inputs=2), stream.remember(**{n: x for n, x in kept.items() if x.size})
