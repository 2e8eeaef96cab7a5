"""Hyena of order 2: a convolution as long as the context, whose filter a small network draws, between two gates.

    x1, x2, v = conv_3(u W_in + b_in) + c        y = x2 * (h conv (x1 v) + D x1 v)        out = y W_out + b_out
    h_t = MLP(t / T, cos, sin) * exp(-|delta| t / T)        (one number per channel; sines as activations)

T is ``max_length``, from which filters are drawn; further back than that nothing is seen. Learned: the projections, the
convolution, the network with its frequency, delta and D. Claimed: attention's perplexity at 2K tokens with a fifth less
compute (Poli et al. 2023). Steps keep the last T inputs. `experiments.state_space` shows what it can recall.
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
from jaxlm.core.params import Normal, ParamSpec, Uniform, ones, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.decays import Linspace
from jaxlm.mixer.recurrent import Recurrent, Stream
from jaxlm.ops.dense import dense
from jaxlm.ops.fft_conv import fft_conv
from jaxlm.ops.segments import Rows


def features(max_length: int, size: int) -> np.ndarray:
    """Of each position, float32 [T, size]: its share of T, and cosines and sines of (size - 1) / 2 frequencies."""
    at = np.arange(max_length)[:, None]
    bands = (size - 1) // 2
    angle = 2 * np.pi * at / max_length * np.linspace(1e-4, bands - 1, bands)
    return np.concatenate((np.linspace(0, 1, max_length)[:, None], np.cos(angle), -np.sin(angle)), 1, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Hyena(Recurrent):
    """Hyena of order 2.

    Attributes:
      max_length: T, the reach of the filter.
      conv: tokens that the short convolution reads.
      features: what the filter's network knows of a position, an odd number.
      hidden: its width; layers: its hidden layers.
      decay_range: a channel's filter fades to 0.01 in a share of T between these two.
    """

    paper: ClassVar[str] = "Poli et al. 2023, Hyena Hierarchy: Towards Larger Convolutional Language Models"

    max_length: int = 2048
    conv: int = 3
    features: int = 3
    hidden: int = 64
    layers: int = 3
    decay_range: tuple[float, float] = (0.3, 1.5)

    def check(self) -> None:
        for name in ("conv", "hidden", "layers"):
            require(getattr(self, name) > 0, f"Hyena.{name}: expected a positive integer, got {getattr(self, name)}")
        require(self.max_length > 1, f"Hyena.max_length: expected an integer > 1, got {self.max_length}")
        odd = self.features > 1 and self.features % 2 == 1
        require(odd, f"Hyena.features: expected an odd number > 1, got {self.features}")
        low, high = self.decay_range
        require(0 < low <= high, f"Hyena.decay_range: expected 0 < low <= high, got {self.decay_range}")

    def params(self, dims: Dims) -> Specs:
        width, channels = dims.width, ("heads",)
        edge = Uniform(-(self.conv**-0.5), self.conv**-0.5)
        steep, gentle = (math.log(0.01) / share for share in self.decay_range)
        specs: Specs = {
            "in": ParamSpec((width, 3, width), ("embed", None, "heads")),
            "in_bias": ParamSpec((3, width), (None, "heads"), zeros, decay=False),
            "conv": ParamSpec((self.conv, 3, width), (None, None, "heads"), edge),
            "conv_bias": ParamSpec((3, width), (None, "heads"), edge, decay=False),
            "frequency": ParamSpec((self.hidden,), (None,), ones, decay=False),
            "delta": ParamSpec((width,), channels, Linspace(gentle, steep), decay=False),
            "skip": ParamSpec((width,), channels, Normal(1.0), decay=False),
            "out": ParamSpec((width, width), ("heads", "embed")),
            "out_bias": ParamSpec((width,), (None,), zeros, decay=False),
        }
        before = self.features
        for i in range(self.layers):
            specs[f"filter_{i}"] = ParamSpec((before, self.hidden), (None, None))
            specs[f"filter_{i}_bias"] = ParamSpec((self.hidden,), (None,), zeros, decay=False)
            before = self.hidden
        specs["filter"] = ParamSpec((self.hidden, width), (None, "heads"))
        return specs

    def memory(self, dims: Dims) -> dict[str, tuple[int, ...]]:
        return {"past": (self.max_length - 1, dims.width)}

    def taps(self, dims: Dims) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {"conv": (self.conv, (3, dims.width))}

    def flops(self, dims: Dims, length: int) -> float:
        """Fourier transforms of twice the length, forth and back, per token."""
        return 10.0 * dims.width * max(length, 2).bit_length()

    def filter(self, p: Params, length: int) -> jax.Array:
        """h, float32 [min(length, T), D]."""
        f32 = lambda name: p[name].astype(jnp.float32)
        inputs = jnp.asarray(features(self.max_length, self.features)[:length])
        h = inputs
        for i in range(self.layers):
            h = jnp.sin(f32("frequency") * (dense(h, f32(f"filter_{i}")) + f32(f"filter_{i}_bias")))
        return dense(h, f32("filter")) * jnp.exp(-jnp.abs(f32("delta")) * inputs[:, :1])

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        added = lambda y, name: y + p[name].astype(y.dtype)
        arms = dist.constrain(added(dense(x_BLD, p["in"]), "in_bias"), ("batch", None, None, "heads"))
        arms, stream = stream.convolve("conv", arms, p["conv"])
        arms = added(arms, "conv_bias").astype(jnp.float32)
        z = arms[..., 0, :] * arms[..., 2, :]
        if stream.memory is None or stream.rows is None:
            y = fft_conv(z, self.filter(p, z.shape[1]), rows=stream.rows)
        else:
            y, past = self._continued(self.filter(p, self.max_length), z, stream.rows, stream.memory["past"])
            stream = stream.remember(past=past)
        y = arms[..., 1, :] * (y + p["skip"].astype(jnp.float32) * z)
        return added(dense(y.astype(x_BLD.dtype), p["out"]), "out_bias"), stream

    def _continued(self, h: jax.Array, z: jax.Array, rows: Rows, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The convolution of tokens [B, L, D] after the ``past`` [B, T - 1, D] of their document, zeros before that;
        and the past of the next token."""
        batch, before = past.shape[:2]
        real = jnp.concatenate((jnp.ones((batch, before), bool), rows.real), 1)
        epoch = jnp.concatenate((jnp.zeros((batch, before), jnp.int32), rows.epoch), 1)
        z = jnp.concatenate((past, jnp.where(rows.real[..., None], z, 0)), 1)
        if z.shape[1] == before + 1:  # one token: a product with the filter
            own = rows.real & (rows.epoch == 0)
            y = h[0] * z[:, -1:] + jnp.where(own[..., None], (h[:0:-1] * past).sum(1, keepdims=True), 0)
        else:
            y = fft_conv(z, h, rows=Rows(real, epoch))[:, before:]
        order = jnp.argsort(~real, axis=1, stable=True)  # real tokens in front
        at = jnp.take_along_axis(order, real.sum(1, keepdims=True) - before + jnp.arange(before), 1)
        same = jnp.take_along_axis(epoch, at, 1) == epoch[:, -1:]
        return y, jnp.where(same[..., None], jnp.take_along_axis(z, at[..., None], 1), 0)
