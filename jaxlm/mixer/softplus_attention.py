"""LSSA and LSSAR: softplus in place of the exponential, a factor of length, and re-weighting (Gao and Spratling 2026).

    LSSA:   A  = l1( softplus( c ln(n_i) q_i.k_j / sqrt(K) ) )        c = ln K, n_i the keys that query i sees
    LSSAR:  A' = l1( relu( n_i A - o )^p )                            sharper; rows that relu empties keep A

A position encoding's bias is added after the factor of length.

Learned: the projections of `jaxlm.mixer.heads`. Claimed by the paper: a near constant loss to 16 times the length of
training. No such claim is made here: the formulas are read from an abstract, so every constant is a field, and in a
pilot of two layers with rotary positions neither extrapolated. At 4 and 8 times the length both lost to softmax, at a
like loss within it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.cache.full import FullCache
from jaxlm.core.config import require, slot
from jaxlm.core.errors import choose
from jaxlm.core.types import Context, Dims, Params
from jaxlm.mixer.attend import hold, own_params
from jaxlm.mixer.heads import Heads
from jaxlm.ops.softplus_attention import Places, View, Weighting, reference, softplus_attention

LENGTHS = ("log_width", "one", "none")


@dataclasses.dataclass(frozen=True)
class Lssa(Heads):
    """Length-scaled softplus attention.

    Attributes:
      heads, kv_heads, head_dim, position, scale, soft_cap, qk_norm, ...: of `Heads`.
      mask: which keys a query sees.
      length: c, the factor of ln(n_i): ``"log_width"`` ln K, ``"one"``, or ``"none"`` for logits without ln(n_i).
      block: queries that meet all keys at once.
      implementation: ``"auto"``, ``"xla"`` (by blocks) or ``"reference"`` (the formula, all at once).
    """

    paper: ClassVar[str] = "Gao and Spratling 2026, softplus attention with re-weighting (LSSA, LSSAR)"
    streaming: ClassVar[bool] = True

    mask: Any = slot("mask", "causal")
    length: str = "log_width"
    block: int = 128
    implementation: str = "auto"

    def check(self) -> None:
        super().check()
        name = type(self).__name__
        choose(f"{name}.length", self.length, LENGTHS)
        require(self.block > 0, f"{name}.block: expected a positive integer, got {self.block}")
        choose(f"{name}.implementation", self.implementation, ("auto", "xla", "reference"))

    @property
    def causal(self) -> bool:
        return self.mask.causal

    @property
    def reweighting(self) -> tuple[float, float]:
        """p and o; p = 0 for none."""
        return 0.0, 0.0

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> FullCache:
        """An empty cache of policy ``cache`` for ``max_length`` tokens."""
        return self.empty_cache(dims, batch, max_length, dtype, cache, self.mask)

    def flops(self, dims: Dims, length: int) -> float:
        """Scores and weighted sum over the keys a token sees: 4 H K per key."""
        own = self.dims(dims)
        return 4.0 * own.heads * own.head_dim * self.mask.mean_keys(length)

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: FullCache | None = None
    ) -> tuple[jax.Array, FullCache | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue what the cache holds.

        Rows whose cache has overflowed read NaN.
        """
        q, k, v = self.project(p, x_BLD)
        where = own_params(self.position, p, ctx)
        held, state = hold(self.position, where, x_BLD, k, v, ctx, state)
        if held.rotated:
            found: list[Any] = [(self.position.rotate(where, q, ctx.positions, ctx.length), held.k, None)]
        else:
            found = self.position.views(where, q, held.k, ctx.positions, held.positions, ctx.length)
        views = []
        for view_q, view_k, region in found:
            bias = self.position.bias(where, view_q, view_k, ctx.positions, held.positions, held.side)
            views.append(View(*self.scored(p, view_q, view_k), region, bias))
        ones = jnp.ones(q.shape[:2], jnp.int32)
        places = Places(ctx.positions, held.positions, *(held.segments or (ones, ones)))
        power, offset = self.reweighting
        weighting = Weighting(
            scale=self.scale or q.shape[-1] ** -0.5,
            soft_cap=self.soft_cap,
            length={"log_width": math.log(q.shape[-1]), "one": 1.0, "none": 0.0}[self.length],
            power=power,
            offset=offset,
        )
        if self.implementation == "reference":
            out = reference(views, held.v, places, mask=self.mask, weighting=weighting)
        else:
            out = softplus_attention(views, held.v, places, mask=self.mask, weighting=weighting, block=self.block)
        if state is not None:
            out = jnp.where(state.overflowed[:, None, None, None], jnp.nan, out)
        return self.unproject(p, out), state


@dataclasses.dataclass(frozen=True)
class Lssar(Lssa):
    """LSSA with re-weighting.

    Attributes:
      power: p, about 15 for extrapolation in the paper, 3 in short training.
      offset: o.
    """

    power: float = 15.0
    offset: float = 0.0

    def check(self) -> None:
        super().check()
        require(self.power >= 1, f"Lssar.power: expected a number >= 1, got {self.power}")
        require(self.offset >= 0, f"Lssar.offset: expected a number >= 0, got {self.offset}")

    @property
    def reweighting(self) -> tuple[float, float]:
        return self.power, self.offset
