"""RWKV-6 ("Finch"), time mixing: a state that fades by channel as the tokens say, and a shift that they decide on too.

    x'_i = x + (m_i + tanh((x + m d) A)_i B_i) d,  d = x_{t-1} - x_t,  for i in w, k, v, r, g
    g = -exp(w_0 + tanh(x'_w F_1) F_2)
    o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t      S_t = diag(exp g_t) S_{t-1} + k_t v_t^T
    y = U (norm(o) silu(x'_g Z))

Learned: the projections, mixes m and their low-rank parts, decays w_0 and F, the bonus u of the current token, gain and
offset of each head's norm. Claimed: better than RWKV-4 and 5, whose decay is fixed, and on a par with Transformers of
its size (Peng et al. 2024). `experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec, Uniform, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.recurrent import Stream
from jaxlm.mixer.rwkv import DEPTH, Curve, Mixes, Rwkv
from jaxlm.ops.dense import dense
from jaxlm.ops.vector_decay import vector_decay

NAMES = "wkvrg"  # of what the shift makes five of


@dataclasses.dataclass(frozen=True)
class Bonus:
    """Falling over the channels of all heads, with a ripple of period 3."""

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        size = math.prod(spec.shape)
        ripple = 0.1 * ((jnp.arange(size) + 1) % 3 - 1)
        return (DEPTH * (1 - jnp.linspace(0.0, 1.0, size)) + ripple).reshape(spec.shape)


@dataclasses.dataclass(frozen=True)
class Rwkv6(Rwkv):
    """RWKV-6's time mixing. The other fields are those of `Rwkv`.

    Attributes:
      shift_rank: of what tokens add to the mixes.
      decay_rank: of what they add to the decay.
    """

    paper: ClassVar[str] = "Peng et al. 2024, Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence"

    op: ClassVar[Any] = staticmethod(vector_decay)

    shift_rank: int = 32
    decay_rank: int = 64

    def check(self) -> None:
        super().check()
        for field in ("shift_rank", "decay_rank"):
            value = getattr(self, field)
            require(value > 0, f"Rwkv6.{field}: expected a positive integer, got {value}")

    def params(self, dims: Dims) -> Specs:
        model, heads, width = dims.width, self.heads, self.width(dims)
        rest = 1 - DEPTH
        small = Uniform(-0.01, 0.01)
        mixes = Mixes((rest, rest, rest, rest / 2, rest / 2), (0.0, 0.0, 0.3 * DEPTH, 0.0, 0.0))
        each = {name: ParamSpec((model, heads, width), ("embed", "heads", None)) for name in "rkvg"}
        return {
            **super().params(dims),
            **each,
            "mix": ParamSpec((model,), (None,), Mixes((rest,)), decay=False),
            "mixes": ParamSpec((len(NAMES), model), (None, None), mixes, decay=False),
            "mix_down": ParamSpec((model, len(NAMES), self.shift_rank), ("embed", None, None), zeros),
            "mix_up": ParamSpec((len(NAMES), self.shift_rank, model), (None, None, "embed"), small, fan_in=(1,)),
            "decay": ParamSpec((heads, width), ("heads", None), Curve(-6.0, -1.0, 0.7 + 1.3 * DEPTH), decay=False),
            "decay_down": ParamSpec((model, self.decay_rank), ("embed", None), zeros),
            "decay_up": ParamSpec((self.decay_rank, heads, width), (None, "heads", None), small),
            "bonus": ParamSpec((heads, width), ("heads", None), Bonus(), decay=False),
        }

    def mix(self, p: Params, x_BLD: jax.Array, stream: Stream, ctx: Context) -> tuple[jax.Array, Stream]:
        d, stream = self.shift(x_BLD, stream)
        low = jnp.tanh(dense(x_BLD + d * p["mix"].astype(d.dtype), p["mix_down"]))
        mixed = {}
        for i, name in enumerate(NAMES):
            share = p["mixes"][i].astype(d.dtype) + dense(low[..., i, :], p["mix_up"][i])
            mixed[name] = x_BLD + share * d
        by_head = lambda x: dist.constrain(x, ("batch", "length", "heads", None))
        r, k, v, gate = (by_head(dense(mixed[name], p[name])) for name in "rkvg")
        decay = dense(jnp.tanh(dense(mixed["w"], p["decay_down"])), p["decay_up"], dtype=jnp.float32)
        log_decay = -jnp.exp(by_head(decay) + p["decay"].astype(jnp.float32))
        out, stream = self.run(stream, r, k, v, log_decay, bonus=p["bonus"].astype(jnp.float32))
        out = self.norm(p, out).astype(x_BLD.dtype) * jax.nn.silu(gate)
        return dense(out, p["out"], inputs=2), stream
