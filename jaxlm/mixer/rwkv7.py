"""RWKV-7 ("Goose"), time mixing: a delta rule whose decay, learning rate and removed key each have a number by channel.

    x'_i = x + m_i (x_{t-1} - x_t)  for i in r, w, k, v, a, g
    v <- v + (v^1 - v) sigmoid(v_0 + x'_v V_1 V_2), v^1 the first layer's v
    g = -e^{-1/2} sigmoid(w_0 + tanh(x'_w F_1) F_2)      a = sigmoid(a_0 + x'_a A_1 A_2)
    kappa = unit(k k_k)    k <- k (1 + (a - 1) k_a)
    S_t = diag(exp g_t) S_{t-1} - (a kappa)_t (kappa_t^T S_{t-1}) + k_t v_t^T      o_t = S_t^T r_t
    y = U ((norm(o) + (r . k r_k) v) (sigmoid(x'_g Z_1) Z_2))

Learned: the projections (those of decay, a and gate of low rank), m, w_0, a_0, k_k, k_a, r_k, gain and offset of each
head's norm. Claimed: state tracking and all regular languages, which attention and diagonal recurrences cannot do (Peng
et al. 2025). The mix with the first layer's values is a choice, ``values``: the published model is a `Group` of one
layer that hands its own on, and one of layers that mix. `experiments.state_space` shows what it can recall.
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
from jaxlm.core.params import Constant, ParamSpec, Uniform, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.recurrent import RecurrentState, Stream
from jaxlm.mixer.rwkv import DEPTH, Curve, Mixes, Rwkv
from jaxlm.ops.dense import dense
from jaxlm.ops.dplr import dplr

NAMES = "rwkvag"  # of what the shift makes six of
POWERS = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)  # of their initial mixes
SLOWEST = math.exp(-0.5)  # a token leaves at least exp(-SLOWEST) = 0.545 of a channel


@dataclasses.dataclass(frozen=True)
class Rwkv7(Rwkv):
    """RWKV-7's time mixing. The other fields are those of `Rwkv`.

    Attributes:
      values: ``"own"``; ``"first"``, own ones that are handed on to later layers; or ``"mixed"`` with those of the last
        layer that did.
      decay_rank, rate_rank, gate_rank, value_rank: of the projections to decays, to a, to gates, and to what values are
        mixed by; 0 for the published 2.5, 2.5, 5 and 1.7 times the root of the width, in steps of 32.
    """

    paper: ClassVar[str] = 'Peng et al. 2025, RWKV-7 "Goose" with Expressive Dynamic State Evolution'
    op: ClassVar[Any] = staticmethod(dplr)

    values: str = "own"
    decay_rank: int = 0
    rate_rank: int = 0
    gate_rank: int = 0
    value_rank: int = 0

    def check(self) -> None:
        super().check()
        choose("Rwkv7.values", self.values, ("own", "first", "mixed"))
        for field in ("decay_rank", "rate_rank", "gate_rank", "value_rank"):
            value = getattr(self, field)
            require(value >= 0, f"Rwkv7.{field}: expected an integer >= 0, got {value}")

    def params(self, dims: Dims) -> Specs:
        model, heads, width = dims.width, self.heads, self.width(dims)
        usual = lambda factor: max(32, round(factor * model**0.5 / 32) * 32)
        ranks = {
            "decay": self.decay_rank or usual(2.5),
            "rate": self.rate_rank or usual(2.5),
            "gate": self.gate_rank or usual(5.0),
        }
        if self.values == "mixed":
            ranks["value"] = self.value_rank or usual(1.7)
        rest = 1 - DEPTH
        each = lambda init: ParamSpec((heads, width), ("heads", None), init, decay=False)
        full = lambda size: ParamSpec((model, heads, width), ("embed", "heads", None), Uniform(-size, size))
        specs = {
            **super().params(dims),
            "r": full(0.5 * model**-0.5),
            "k": full(0.05 * model**-0.5),
            "v": full(0.5 * model**-0.5),
            "mixes": ParamSpec(
                (len(NAMES), model), (None, None), Mixes(tuple(power * rest for power in POWERS)), decay=False
            ),
            "decay": each(Curve(-5.5, 0.5, 1 + DEPTH**0.3, zigzag=2.5)),
            "rate": each(Curve(-0.39, 0.01, zigzag=0.3)),
            "k_k": each(Curve(0.76, 0.66)),
            "k_a": each(Constant(1.02)),
            "r_k": each(Constant(-0.04)),
        }
        if self.values == "mixed":
            specs["value"] = each(Curve(0.93, 0.53))
        for name, rank in ranks.items():
            specs[f"{name}_down"] = ParamSpec((model, rank), ("embed", None), zeros)
            specs[f"{name}_up"] = ParamSpec((rank, heads, width), (None, "heads", None))
        return specs

    def flops(self, dims: Dims, length: int) -> float:
        """Within a chunk, into the state and out of it, per token: twice for what is removed, and the inverse."""
        del length
        width = self.width(dims)
        return self.heads * (12.0 * self.chunk * width + self.chunk**2 + 8.0 * width * width)

    @property
    def hands_on(self) -> bool:
        """`hand_on` has something for later layers."""
        return self.values == "first"

    def hand_on(self, p: Params, x_BLD: jax.Array, ctx: Context, state: RecurrentState | None) -> Params:
        """The values [B, L, H, K], for `Context.handed`."""
        d, _ = self.shift(x_BLD, self.before(x_BLD, ctx, state))
        mix = p["mixes"][NAMES.index("v")].astype(d.dtype)
        return {"values": dense(x_BLD + d * mix, p["v"])}

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        d, stream = self.shift(x_BLD, stream)
        mixed = {name: x_BLD + d * p["mixes"][i].astype(d.dtype) for i, name in enumerate(NAMES)}
        by_head = lambda x: dist.constrain(x, ("batch", "length", "heads", None))
        wide = lambda name: p[name].astype(jnp.float32)
        r, k, v = (by_head(dense(mixed[name], p[name])) for name in "rkv")
        if self.values == "mixed":
            require(
                "values" in ctx.handed, "Rwkv7.values 'mixed' needs a layer before it in the model with values 'first'"
            )
            share = dense(dense(mixed["v"], p["value_down"]), p["value_up"], dtype=jnp.float32)
            share = jax.nn.sigmoid(by_head(share) + wide("value")).astype(v.dtype)
            v = v + (ctx.handed["values"] - v) * share
        decay = dense(jnp.tanh(dense(mixed["w"], p["decay_down"])), p["decay_up"], dtype=jnp.float32)
        log_decay = -SLOWEST * jax.nn.sigmoid(by_head(decay) + wide("decay"))
        rate = dense(dense(mixed["a"], p["rate_down"]), p["rate_up"], dtype=jnp.float32)
        rate = jax.nn.sigmoid(by_head(rate) + wide("rate"))
        gate = by_head(dense(jax.nn.sigmoid(dense(mixed["g"], p["gate_down"])), p["gate_up"]))
        r, k = r.astype(jnp.float32), k.astype(jnp.float32)
        kappa = k * wide("k_k")
        kappa = kappa * jax.lax.rsqrt(jnp.square(kappa).sum(-1, keepdims=True) + 1e-12)
        k = k * (1 + (rate - 1) * wide("k_a"))
        out, stream = self.run(stream, r, k, v, -kappa, kappa * rate, log_decay)
        own = (r * k * wide("r_k")).sum(-1, keepdims=True) * v
        out = (self.norm(p, out) + own).astype(x_BLD.dtype) * gate
        return dense(out, p["out"], inputs=2), stream
