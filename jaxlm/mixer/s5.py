"""S5: one state space for all features, whose states are run by a scan.

    x_t = Lbar x_{t-1} + Bbar u_t        y_t = 2 Re(C x_t) + D u_t        out = y' * sigmoid(y' W + b),  y' = gelu(y)

Lbar is diagonal; it begins as the eigenvalues of ``blocks`` HiPPO-LegS matrices, and B and C as random matrices seen in
their eigenvectors. Learned: Lambda (as log(-Re) and -Im), B, C, log dt of each state, D, W, b. Claimed: S4's accuracy
on long ranges with one scan and no convolution (Smith et al. 2023). `experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import Normal, ParamSpec, Uniform, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.decays import check_range
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.mixer.state_space import reversed_rows, to_complex, to_real
from jaxlm.ops.activation import gelu
from jaxlm.ops.dense import dense
from jaxlm.ops.diagonal_scan import IMPLEMENTATIONS, diagonal_scan
from jaxlm.ops.hippo import legs
from jaxlm.ops.s4_kernel import DISCRETISATIONS, discretise
from jaxlm.ops.segments import Rows


@dataclasses.dataclass(frozen=True)
class FromBlocks:
    """Of HiPPO-LegS matrices on a diagonal: ``log_decay`` or ``frequency`` [P / 2] of their eigenvalues; ``b``
    [D, P / 2, 2] and ``c`` [P / 2, 2, D], random matrices in terms of their eigenvectors."""

    blocks: int
    part: str

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        half = spec.shape[1 if self.part == "b" else 0]
        size = 2 * half // self.blocks
        made = legs(size)
        if self.part in ("log_decay", "frequency"):
            value = np.log(-np.real(made.eigenvalues)) if self.part == "log_decay" else -np.imag(made.eigenvalues)
            return jnp.tile(jnp.asarray(value, jnp.float32), self.blocks)
        basis = jnp.asarray(made.basis, jnp.complex64)
        if self.part == "b":
            width = spec.shape[0]
            drawn = jax.random.normal(key, (width, self.blocks, size)) * width**-0.5
            return to_real(drawn @ basis.conj()).reshape(spec.shape)
        width = spec.shape[2]
        drawn = to_complex(jax.random.normal(key, (width, self.blocks, size, 2))) * (2 * half) ** -0.5
        return jnp.moveaxis(to_real(drawn @ basis).reshape(width, half, 2), 0, 2)


def multi_scan(
    log_a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    u: jax.Array,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """2 Re(C x_t) [B, L, D'] of a diagonal system with many inputs and outputs, and the last state, complex [B, P].

    Args:
      log_a: logarithm of Abar, complex [P].
      b: Bbar, complex [D, P].
      c: complex [P, D'].
      u: [B, L, D].
      rows, state, chunk, implementation: of `jaxlm.ops.diagonal_scan`.
    """
    inputs = to_complex(dense(u, to_real(b)))
    x, last = diagonal_scan(log_a, inputs, rows=rows, state=state, chunk=chunk, implementation=implementation)
    read = jnp.stack((2 * jnp.real(c), -2 * jnp.imag(c)), 1)
    return dense(to_real(x), read, inputs=2), last


@dataclasses.dataclass(frozen=True)
class S5(Recurrent):
    """S5.

    Attributes:
      state: P, of the whole layer, a multiple of twice the blocks.
      blocks: HiPPO matrices that the initial one is made of.
      step_range: initial step sizes lie between these two.
      rule: ``"zoh"`` for a zero-order hold, or ``"bilinear"``.
      bidirectional: a second scan from the end, read by a second output matrix; such a layer cannot stream.
      chunk, implementation: of `jaxlm.ops.diagonal_scan`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Smith, Warrington & Linderman 2023, Simplified State Space Layers for Sequence Modeling"

    state: int = 64
    blocks: int = 1
    step_range: tuple[float, float] = (1e-3, 1e-1)
    rule: str = "zoh"
    bidirectional: bool = False
    chunk: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        require(self.blocks > 0, f"S5.blocks: expected a positive integer, got {self.blocks}")
        fits = self.state > 0 and self.state % (2 * self.blocks) == 0
        require(fits, f"S5.state: expected a multiple of twice the {self.blocks} blocks, got {self.state}")
        require(self.chunk > 0, f"S5.chunk: expected a positive integer, got {self.chunk}")
        check_range("S5.step_range", self.step_range)
        choose("S5.rule", self.rule, DISCRETISATIONS)
        choose("S5.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return not self.bidirectional

    def params(self, dims: Dims) -> Specs:
        width, half, states = dims.width, self.state // 2, ("heads",)
        part = lambda name: FromBlocks(self.blocks, name)
        specs = {
            "log_decay": ParamSpec((half,), states, part("log_decay"), decay=False),
            "frequency": ParamSpec((half,), states, part("frequency"), decay=False),
            "log_dt": ParamSpec((half,), states, Uniform(*map(math.log, self.step_range)), decay=False),
            "b": ParamSpec((width, half, 2), ("embed", "heads", None), part("b"), decay=False),
        }
        for c in ("c", "c_later")[: 1 + self.bidirectional]:
            specs[c] = ParamSpec((half, 2, width), ("heads", None, "embed"), part("c"), fan_in=(0, 1))
        specs["skip"] = ParamSpec((width,), (None,), Normal(1.0), decay=False)
        specs["gate"] = ParamSpec((width, width), ("embed", "heads"))
        specs["gate_bias"] = ParamSpec((width,), ("heads",), zeros, decay=False)
        return specs

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self.state // 2, 2)}

    def flops(self, dims: Dims, length: int) -> float:
        """The scan, per token; the rest are matmuls with parameters."""
        del dims, length
        return (1 + self.bidirectional) * 4.0 * self.state

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        u = x_BLD.astype(jnp.float32)
        f32 = lambda name: p[name].astype(jnp.float32)
        a = jax.lax.complex(-jnp.exp(f32("log_decay")), -f32("frequency"))
        log_a, b = discretise(a, to_complex(f32("b")), jnp.exp(f32("log_dt")), self.rule)
        read = lambda name: to_complex(jnp.moveaxis(f32(name), 1, -1))
        options = {
            "chunk": self.chunk,
            "implementation": None if self.implementation == "auto" else self.implementation,
        }
        state = None if stream.memory is None else to_complex(stream.memory["state"])
        y, state = multi_scan(log_a, b, read("c"), u, rows=stream.rows, state=state, **options)
        if self.bidirectional:
            back = reversed_rows(stream.rows)
            y = y + multi_scan(log_a, b, read("c_later"), u[:, ::-1], rows=back, **options)[0][:, ::-1]
        y = gelu(y + f32("skip") * u).astype(x_BLD.dtype)
        gate = dist.constrain(dense(y, p["gate"]) + p["gate_bias"].astype(y.dtype), ("batch", None, "heads"))
        return y * jax.nn.sigmoid(gate), stream.remember(state=to_real(state))
