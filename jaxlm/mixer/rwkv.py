"""What RWKV-6 and RWKV-7 have in common: the token shift, the norm of heads, and initial values that run over channels.

    x'_t = x_t + m (x_{t-1} - x_t)

The published initial values also change with the layer's index, which a layer here does not know: they are those of
the middle of the model.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec, ones, zeros
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.mixer.linear import Linear
from jaxlm.mixer.recurrent import Stream
from jaxlm.norm.layer import LayerNorm

DEPTH = 0.5  # of the layer whose initial values these are, from 0 to 1


@dataclasses.dataclass(frozen=True)
class Mixes:
    """1 - (n / D)^power - less for channel n of D, a row for each of ``powers``: how much of the token before."""

    powers: tuple[float, ...]
    less: tuple[float, ...] = ()

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        channel = jnp.arange(spec.shape[-1]) / spec.shape[-1]
        less = self.less or (0.0,) * len(self.powers)
        rows = [1 - channel**power - b for power, b in zip(self.powers, less, strict=True)]
        return jnp.stack(rows).reshape(spec.shape).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Curve:
    """low + (high - low) (n / (D - 1))^power over the D channels of all heads, and within each head ``zigzag`` times
    z |z| for z from -1 to 1."""

    low: float
    high: float
    power: float = 1.0
    zigzag: float = 0.0

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        over = jnp.linspace(0.0, 1.0, math.prod(spec.shape)).reshape(spec.shape)
        within = jnp.linspace(-1.0, 1.0, spec.shape[-1])
        return self.low + (self.high - self.low) * over**self.power + self.zigzag * within * jnp.abs(within)


@dataclasses.dataclass(frozen=True)
class Rwkv(Linear):
    """The base of RWKV's time mixing.

    Attributes:
      heads: H, a divisor of the width; the published models have heads of 64 channels.
      eps: of the norm of heads.
      chunk, implementation: of `Linear`.
    """

    diagonal: ClassVar[bool] = False  # in RWKV-6 since a token reads the state before its decay

    heads: int = 8
    eps: float = 64e-5

    def check(self) -> None:
        super().check()
        name = type(self).__name__
        for field in ("heads", "eps"):
            value = getattr(self, field)
            require(value > 0, f"{name}.{field}: expected a positive number, got {value}")

    def width(self, dims: Dims) -> int:
        """K. Raises `ConfigError` if the model's width cannot be divided."""
        name = type(self).__name__
        require(
            dims.width % self.heads == 0, f"{name}.heads: model width {dims.width} is not divisible by {self.heads}"
        )
        return dims.width // self.heads

    def params(self, dims: Dims) -> Specs:
        """Gain and offset of the norm of heads, and the output projection."""
        shape = self.heads, self.width(dims)
        return {
            "norm": {
                "scale": ParamSpec(shape, ("heads", None), ones, decay=False),
                "bias": ParamSpec(shape, ("heads", None), zeros, decay=False),
            },
            "out": ParamSpec((*shape, dims.width), ("heads", None, "embed"), fan_in=(0, 1)),
        }

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"state": (self.heads, self.width(dims), self.width(dims))}

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {"shift": (2, (dims.width,))}

    def shift(self, x_BLD: jax.Array, stream: Stream) -> tuple[jax.Array, Stream]:
        """x_{t-1} - x_t, with 0 before a document's first token."""
        taps = jnp.asarray([0.0, 1.0], x_BLD.dtype)[:, None] * jnp.ones_like(x_BLD[0, 0])
        before, stream = stream.convolve("shift", x_BLD, taps)
        return before - x_BLD, stream

    def norm(self, p: Params, out: jax.Array) -> jax.Array:
        """[B, L, H, K], each head of mean 0 and variance 1, with a gain and offset of its own; float32."""
        out = LayerNorm(self.eps, bias=False, gain=False)({}, out.astype(jnp.float32))
        return out * p["norm"]["scale"].astype(jnp.float32) + p["norm"]["bias"].astype(jnp.float32)
