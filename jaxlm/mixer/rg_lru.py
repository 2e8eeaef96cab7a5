"""Griffin's recurrent block: a gated linear recurrence in one arm, GELU in the other.

    r = sigmoid(x W_a + b_a)    i = sigmoid(x W_x + b_x)    log a = -8 r softplus(Lambda)
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)        (RG-LRU)
    out = (RG-LRU(conv_4(u W_in + b_in)) * gelu(u W_gate + b_gate)) W_out + b_out

W_a and W_x are block-diagonal. Where a document begins, the input is taken whole. Learned: all of these; Lambda begins
so that a = u^(8 r), u^2 uniform in ``decay_range`` squared. Claimed: Transformer quality with a state of one number per
channel, with local attention in every third layer (De et al. 2024). `experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import Normal, ParamSpec, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.ops.dense import dense
from jaxlm.ops.diagonal_scan import IMPLEMENTATIONS, diagonal_scan
from jaxlm.ops.segments import Rows

_SHARPNESS = 8.0
_STEEPEST = 1000.0  # of the square root's slope, which is infinite where nothing fades


@dataclasses.dataclass(frozen=True)
class DecayInit:
    """Lambda for which exp(-softplus(Lambda)) is the square root of a number uniform in [low^2, high^2]."""

    low: float
    high: float

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        squared = jax.random.uniform(key, spec.shape, jnp.float32, self.low**2, self.high**2)
        return jnp.log(jnp.expm1(-0.5 * jnp.log(squared)))


@jax.custom_jvp
def bounded_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with a slope of at most 1000."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx * jax.lax.rsqrt(jnp.maximum(4 * x, _STEEPEST**-2))


def rg_lru(
    x: jax.Array,
    recurrence_gate: jax.Array,
    input_gate: jax.Array,
    decay: jax.Array,
    begins: jax.Array,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """h [B, L, C] and the last [B, C], float32, for x [B, L, C].

    Args:
      recurrence_gate, input_gate: of the same shape, before the sigmoid.
      decay: Lambda, [C].
      begins: boolean [B, L], where the input is taken whole.
      rows, state, chunk, implementation: of `jaxlm.ops.diagonal_scan`.
    """
    f32 = lambda y: y.astype(jnp.promote_types(y.dtype, jnp.float32))
    log_a = -_SHARPNESS * jax.nn.sigmoid(f32(recurrence_gate)) * jax.nn.softplus(f32(decay))
    share = jnp.where(begins[..., None], 1.0, bounded_sqrt(-jnp.expm1(2 * log_a)))
    new = share * jax.nn.sigmoid(f32(input_gate)) * f32(x)
    return diagonal_scan(log_a, new, rows=rows, state=state, chunk=chunk, implementation=implementation)


@dataclasses.dataclass(frozen=True)
class RgLru(Recurrent):
    """Griffin's recurrent block.

    Attributes:
      width: channels of the recurrence; 0 for those of the model.
      heads: blocks on the diagonal of the gates' matrices, a divisor of the width.
      conv: tokens that the convolution reads.
      decay_range: u of the head of the file.
      chunk, implementation: of `jaxlm.ops.diagonal_scan`, or ``"auto"``.
    """

    paper: ClassVar[str] = "De et al. 2024, Griffin: Mixing Gated Linear Recurrences with Local Attention"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"toy": {"decay_range": (0.5, 0.999)}}

    width: int = 0
    heads: int = 8
    conv: int = 4
    decay_range: tuple[float, float] = (0.9, 0.999)
    chunk: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        for name in ("heads", "chunk"):
            require(getattr(self, name) > 0, f"RgLru.{name}: expected a positive integer, got {getattr(self, name)}")
        require(self.conv > 1, f"RgLru.conv: expected an integer > 1, got {self.conv}")
        require(self.width >= 0, f"RgLru.width: expected an integer >= 0, got {self.width}")
        low, high = self.decay_range
        require(0 < low <= high < 1, f"RgLru.decay_range: expected 0 < low <= high < 1, got {self.decay_range}")
        choose("RgLru.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    def _width(self, dims: Dims) -> int:
        width = self.width or dims.width
        require(width % self.heads == 0, f"RgLru.heads: width {width} is not divisible by {self.heads}")
        return width

    def params(self, dims: Dims) -> Specs:
        model, width = dims.width, self._width(dims)
        shape = (self.heads, width // self.heads)
        specs: Specs = {}
        for name in ("gate", "in"):
            specs[name] = ParamSpec((model, *shape), ("embed", "heads", None))
            specs[f"{name}_bias"] = ParamSpec(shape, ("heads", None), zeros, decay=False)
        specs["conv"] = ParamSpec((self.conv, *shape), (None, "heads", None), Normal((0.01 / self.conv) ** 0.5))
        specs["conv_bias"] = ParamSpec(shape, ("heads", None), zeros, decay=False)
        for name in ("recurrence_gate", "input_gate"):
            specs[name] = ParamSpec((*shape, shape[1]), ("heads", None, None), fan_in=(1,))
            specs[f"{name}_bias"] = ParamSpec(shape, ("heads", None), zeros, decay=False)
        specs["decay"] = ParamSpec(shape, ("heads", None), DecayInit(*self.decay_range), decay=False)
        specs["out"] = ParamSpec((*shape, model), ("heads", None, "embed"), fan_in=(0, 1))
        specs["out_bias"] = ParamSpec((model,), (None,), zeros, decay=False)
        return specs

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self.heads, self._width(dims) // self.heads)}

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {"conv": (self.conv, self.memory(dims)["state"])}

    def flops(self, dims: Dims, length: int) -> float:
        """The scan and its gates, per token; the rest are matmuls with parameters."""
        del length
        return 10.0 * self._width(dims)

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        added = lambda y, name: y + p[name].astype(y.dtype)
        arm = lambda name: dist.constrain(added(dense(x_BLD, p[name]), f"{name}_bias"), ("batch", None, "heads", None))
        begins = self._begins(x_BLD, stream)
        x, stream = stream.convolve("conv", arm("in"), p["conv"])
        x = added(x, "conv_bias")
        gate = lambda name: added(jnp.einsum("blhw,hwv->blhv", x, p[name].astype(x.dtype)), f"{name}_bias")
        flat = lambda y: y.reshape(*y.shape[:2], -1)
        state = None if stream.memory is None else stream.memory["state"]
        h, last = rg_lru(
            flat(x),
            flat(gate("recurrence_gate")),
            flat(gate("input_gate")),
            p["decay"].reshape(-1),
            begins,
            rows=stream.rows,
            state=None if state is None else state.reshape(len(state), -1),
            chunk=self.chunk,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        y = h.reshape(x.shape).astype(x.dtype) * jax.nn.gelu(arm("gate"), approximate=True)
        return added(dense(y, p["out"], inputs=2), "out_bias"), stream.remember(state=last.reshape(-1, *x.shape[2:]))

    def _begins(self, x: jax.Array, stream: Stream) -> jax.Array:
        """Boolean [B, L]: the first token of a document. That of a row is known by the empty tail before it."""
        if stream.rows is None:
            return jnp.broadcast_to(jnp.arange(x.shape[1]) == 0, x.shape[:2])
        real, epoch = stream.rows
        begun = jnp.zeros(len(real), bool) if not stream.tail else stream.tail["conv"].segments[:, -1] != 0
        first = real & (jnp.cumsum(real, 1) == 1) & ~begun[:, None]
        return first | (jnp.diff(epoch, axis=1, prepend=0) > 0)
