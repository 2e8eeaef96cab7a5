"""What mixers with a state of keys by values have in common: projections, a short convolution, norm and way back.

    q, k, v = silu(conv(x W))      (S_t, o_t) by the mixer's recurrence      y = U gate(norm(o))

Learned: qk (D, G, 2, K), v (D, H, V), the convolutions' taps, a norm's gain [V] for all heads, and out (H, V, D).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec, Uniform
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.linear import Linear
from jaxlm.mixer.recurrent import Stream
from jaxlm.norm.rms import RmsNorm
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Keyed(Linear):
    """The base of GLA and of the delta rules. Subclasses give `recur`, and what they add to `params` and do in `gate`.

    Attributes:
      heads: H, heads of values.
      key_heads: G, heads of queries and keys, a divisor of ``heads``; 0 for as many.
      key_width, value_width: K and V; 0 for what the method's paper has at this width and number of heads.
      conv: tokens that the convolutions of q, k and v read; 1 for none.
      eps: of the norm of outputs.
      chunk, implementation: of `Linear`.
    """

    shares: ClassVar[tuple[float, float]] = (1.0, 1.0)  # of the model's width, that all heads' keys and values have

    heads: int = 4
    key_heads: int = 0
    key_width: int = 0
    value_width: int = 0
    conv: int = 4
    eps: float = 1e-5

    def check(self) -> None:
        super().check()
        name = type(self).__name__
        for field in ("heads", "conv"):
            value = getattr(self, field)
            require(value > 0, f"{name}.{field}: expected a positive integer, got {value}")
        for field in ("key_heads", "key_width", "value_width", "eps"):
            value = getattr(self, field)
            require(value >= 0, f"{name}.{field}: expected a number >= 0, got {value}")
        require(
            self.heads % self.groups == 0,
            f"{name}.key_heads: expected a divisor of heads {self.heads}, got {self.key_heads}",
        )

    @property
    def groups(self) -> int:
        """G, heads of queries and keys."""
        return self.key_heads or self.heads

    def widths(self, dims: Dims) -> tuple[int, int]:
        """K and V. Raises `ConfigError` if the model's width cannot be divided into them."""
        found = []
        for field, share in zip(("key_width", "value_width"), self.shares, strict=True):
            width = getattr(self, field) or share * dims.width / self.heads
            require(
                width == int(width) > 0,
                f"{type(self).__name__}.{field}: {share} times model width {dims.width} is not divisible by "
                f"{self.heads} heads; set {field} or heads",
            )
            found.append(int(width))
        return found[0], found[1]

    def params(self, dims: Dims) -> Specs:
        key, value = self.widths(dims)
        specs: Specs = {
            "qk": ParamSpec((dims.width, self.groups, 2, key), ("embed", "heads", None, None)),
            "v": ParamSpec((dims.width, self.heads, value), ("embed", "heads", None)),
            "norm": RmsNorm(self.eps).params(value),
            "out": ParamSpec((self.heads, value, dims.width), ("heads", None, "embed"), fan_in=(0, 1)),
        }
        if self.conv > 1:
            init = Uniform(-(self.conv**-0.5), self.conv**-0.5)
            shape = (self.conv, self.groups, 2, key)
            specs["qk_conv"] = ParamSpec(shape, (None, "heads", None, None), init)
            specs["v_conv"] = ParamSpec((self.conv, self.heads, value), (None, "heads", None), init)
        return specs

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self.heads, *self.widths(dims))}

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        if self.conv == 1:
            return {}
        key, value = self.widths(dims)
        return {"qk": (self.conv, (self.groups, 2, key)), "v": (self.conv, (self.heads, value))}

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        qk = dist.constrain(dense(x_BLD, p["qk"]), ("batch", "length", "heads", None, None))
        v = dist.constrain(dense(x_BLD, p["v"]), ("batch", "length", "heads", None))
        if self.conv > 1:
            qk, stream = stream.convolve("qk", qk, p["qk_conv"])
            v, stream = stream.convolve("v", v, p["v_conv"])
        out, stream = self.recur(p, x_BLD, qk[..., 0, :], qk[..., 1, :], v, stream)
        out = self.gate(p, x_BLD, RmsNorm(self.eps)(p["norm"], out))
        return dense(out, p["out"], inputs=2), stream

    def recur(
        self, p: Params, x_BLD: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, stream: Stream
    ) -> tuple[jax.Array, Stream]:
        """[B, L, H, V] in v's dtype and the stream after; q, k [B, L, G, K] and v [B, L, H, V] as convolved."""
        raise NotImplementedError

    def gate(self, p: Params, x_BLD: jax.Array, out: jax.Array) -> jax.Array:
        """Normalised outputs [B, L, H, V], gated."""
        return out
