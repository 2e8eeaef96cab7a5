"""mLSTM, the matrix memory of xLSTM: linear attention with an exponential input gate and a forget gate per head.

    C_t = f_t C_{t-1} + i_t k_t v_t^T    n_t = f_t n_{t-1} + i_t k_t    h_t = C_t^T q_t / max(|n_t . q_t|, 1)
    i_t = exp(cap(x_t W_i + b_i)),  f_t = sigmoid(cap(x_t W_f + b_f)),  cap(y) = c tanh(y / c),  q scaled by 1 / sqrt(K)
    out = W (RMSNorm(h) * sigmoid(x W_o)), head by head

as stabilised in `jaxlm.ops.mlstm`. Learned: the projections q, k (D, H, K), v and the output gate (D, H, V), those of
the gates i and f with their biases, the norm's gain. Gates begin closed (b_i = -10) and remembering (b_f from 3 to 6
over the heads), and as functions of nothing but their biases.
Claimed: scales like a Transformer with a state of fixed size (Beck et al. 2024; 2025, xLSTM 7B, whose settings these
are). `experiments.state_space` shows what it recalls for its size.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import Constant, ParamSpec, ones, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.decays import Linspace
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.norm.rms import RmsNorm
from jaxlm.ops.dense import dense
from jaxlm.ops.mlstm import EPS, IMPLEMENTATIONS, Memory, accumulate, fading, joined, mlstm, normalised
from jaxlm.ops.segments import Rows


@dataclasses.dataclass(frozen=True)
class Mlstm(Recurrent):
    """The matrix memory of xLSTM.

    Attributes:
      heads: H, a divisor of the width.
      key_expand: width of all keys together over the model's.
      gate_cap: c, bound of the gates' logarithms.
      input_bias: b_i at first.
      forget_range: b_f of the first and the last head, at first.
      norm_eps: of the norm of each head's output.
      chunk: tokens that meet each other as matrices.
      implementation: a back end of `jaxlm.ops.mlstm`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Beck et al. 2024, xLSTM: Extended Long Short-Term Memory"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"toy": {"input_bias": 0.0}}  # open gates, for short training

    heads: int = 4
    key_expand: float = 0.5
    gate_cap: float = 15.0
    input_bias: float = -10.0
    forget_range: tuple[float, float] = (3.0, 6.0)
    norm_eps: float = 1e-6
    chunk: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        for name in ("heads", "chunk"):
            require(getattr(self, name) > 0, f"Mlstm.{name}: expected a positive integer, got {getattr(self, name)}")
        for name in ("key_expand", "gate_cap"):
            require(getattr(self, name) > 0, f"Mlstm.{name}: expected a positive number, got {getattr(self, name)}")
        low, high = self.forget_range
        require(low <= high, f"Mlstm.forget_range: expected low <= high, got {self.forget_range}")
        require(self.norm_eps >= 0, f"Mlstm.norm_eps: expected a number >= 0, got {self.norm_eps}")
        choose("Mlstm.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    def _widths(self, dims: Dims) -> tuple[int, int]:
        """K and V."""
        require(dims.width % self.heads == 0, f"Mlstm.heads: model width {dims.width} is not divisible by {self.heads}")
        key = self.key_expand * dims.width / self.heads
        require(
            key == int(key),
            f"Mlstm.key_expand: {self.key_expand} x width {dims.width} is not a multiple of {self.heads} heads",
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
            "input": ParamSpec((model, self.heads), ("embed", "heads"), zeros),
            "input_bias": ParamSpec((self.heads,), ("heads",), Constant(self.input_bias), decay=False),
            "forget": ParamSpec((model, self.heads), ("embed", "heads"), zeros),
            "forget_bias": ParamSpec((self.heads,), ("heads",), Linspace(*self.forget_range), decay=False),
            "norm": ParamSpec((self.heads, value), ("heads", None), ones, decay=False),
            "out": ParamSpec((self.heads, value, model), ("heads", None, "embed"), fan_in=(0, 1)),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        key, value = self._widths(dims)
        return {"c": (self.heads, key, value), "n": (self.heads, key), "m": (self.heads,)}

    def flops(self, dims: Dims, length: int) -> float:
        """Within a chunk, into the memory and out of it, per token."""
        del length
        key, value = self._widths(dims)
        return self.heads * (2.0 * self.chunk * (key + value + 1) + 4.0 * key * (value + 1))

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        by_head = ("batch", "length", "heads", None)
        q, k, v, z = (dist.constrain(dense(x_BLD, p[name]), by_head) for name in ("q", "k", "v", "gate"))
        log_input, forget = self._capped(p, "input", x_BLD), self._capped(p, "forget", x_BLD)
        tokens = (q * q.shape[-1] ** -0.5, k, v, log_input, jax.nn.log_sigmoid(forget))
        state = None if stream.memory is None else Memory(**stream.memory)
        if self.implementation != "reference" and dist.divided(q.shape[1]):
            out, memory = self._in_pieces(tokens, stream.rows, state)
        else:
            name = None if self.implementation == "auto" else self.implementation
            out, memory = mlstm(*tokens, rows=stream.rows, state=state, chunk=self.chunk, implementation=name)
        out = RmsNorm(self.norm_eps)({"scale": p["norm"]}, out) * jax.nn.sigmoid(z)
        return dense(out, p["out"], inputs=2), stream.remember(**memory._asdict())

    def _in_pieces(
        self, tokens: tuple[jax.Array, ...], rows: Rows | None, state: Memory | None
    ) -> tuple[jax.Array, Memory]:
        """`mlstm` with rows split over a mesh, by LASP-2: devices send memories and two logarithms."""
        (batch, _, heads, key), value = tokens[0].shape, tokens[2].shape[-1]
        if state is None:
            start = jnp.zeros((batch, heads, key, value + 1)), jnp.zeros((batch, heads))
        else:
            start = jnp.concatenate((state.c, state.n[..., None]), -1), state.m

        def run(tokens: tuple[jax.Array, ...], rows: Rows | None) -> tuple[tuple[jax.Array, ...], jax.Array]:
            read, m, own = accumulate(*tokens, rows=rows, chunk=self.chunk)
            fade = fading(tokens[-1], rows)
            logs = jnp.broadcast_to(jnp.stack((own.m, fade[:, -1]), -1)[:, :, None], (batch, heads, key, 2))
            return (tokens[0], read, m, fade), jnp.concatenate((own.c, own.n[..., None], logs), -1)

        def pass_on(state: tuple[jax.Array, jax.Array], end: jax.Array) -> tuple[jax.Array, jax.Array]:
            return joined(end[..., 0, -1], state, (end[..., :-2], end[..., 0, -2]))

        def add(made: tuple[jax.Array, ...], state: tuple[jax.Array, jax.Array]) -> jax.Array:
            q, read, m, fade = made
            incoming = jnp.einsum("blhk,bhkv->blhv", q.astype(read.dtype), state[0])
            return normalised(*joined(fade, (incoming, state[1][:, None]), (read, m)), EPS)

        out, (both, m) = dist.in_pieces(run, pass_on, add, tokens, rows, start)
        return out.astype(tokens[2].dtype), Memory(both[..., :-1], both[..., -1], m)

    def _capped(self, p: Params, name: str, x: jax.Array) -> jax.Array:
        """The preactivation float32 [B, L, H] of a gate."""
        gate = dense(x, p[name], dtype=jnp.float32) + p[f"{name}_bias"].astype(jnp.float32)
        return self.gate_cap * jnp.tanh(gate / self.gate_cap)
