"""Softmax attention: multi-head, grouped-query (Ainslie et al. 2023) and multi-query (Shazeer 2019) in one file.

Learned: the projections of `jaxlm.mixer.heads`. Positions, mask, query/key norm and cache are slots.
A sink is a learned logit per head that joins the softmax's denominator and carries no value (GPT-OSS; Xiao et al. 2023,
Efficient Streaming Language Models with Attention Sinks). An output gate, sigmoid(x W) of the same shape, multiplies
what the heads have read (Qiu et al. 2025, Gated Attention for Large Language Models; Qwen3-Next).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.cache.full import FullCache
from jaxlm.core.config import require, slot
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.attend import attend, hold, own_params
from jaxlm.mixer.heads import Heads
from jaxlm.ops.attention import IMPLEMENTATIONS
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Attention(Heads):
    """Softmax attention.

    Attributes:
      heads, kv_heads, head_dim, position, scale, soft_cap, qk_norm, ...: of `Heads`.
      mask: which keys a query sees.
      sinks: whether each head has a learned sink logit.
      softmax1: whether each head has a sink of logit 0, which is not learned: softmax over 1 + sum exp, so that a query
        may read nothing (Miller 2023, Attention Is Off By One; MrT5).
      out_gate: whether there is an output gate, with an offset if queries have one.
      implementation: a back end of `jaxlm.ops.attention`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need"
    streaming: ClassVar[bool] = True

    mask: Any = slot("mask", "causal")
    sinks: bool = False
    softmax1: bool = False
    out_gate: bool = False
    implementation: str = "auto"

    def check(self) -> None:
        super().check()
        choose("Attention.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))
        require(not (self.sinks and self.softmax1), "Attention: a sink is learned (sinks) or 0 (softmax1), not both")

    @property
    def causal(self) -> bool:
        return self.mask.causal

    def params(self, dims: Dims) -> Specs:
        specs = super().params(dims)
        if self.sinks:
            specs["sinks"] = ParamSpec((self.groups, self.heads // self.groups), ("heads", None), zeros, decay=False)
        if self.out_gate:
            shape = (self.groups, self.heads // self.groups, self.dims(dims).head_dim)
            specs["gate"] = ParamSpec((dims.width, *shape), ("embed", "heads", None, None))
            if self.qkv_bias:
                specs["gate_bias"] = ParamSpec(shape, ("heads", None, None), zeros, decay=False)
        return specs

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

        The same call serves the full pass, a prefill in pieces and single steps. Rows whose cache has overflowed read
        NaN.
        """
        q, k, v = self.project(p, x_BLD)
        where = own_params(self.position, p, ctx)
        held, state = hold(self.position, where, x_BLD, k, v, ctx, state)
        sinks = p["sinks"].reshape(-1) if self.sinks else jnp.zeros(self.heads) if self.softmax1 else None
        out = attend(
            self.position,
            where,
            q,
            held,
            held.v,
            ctx,
            mask=self.mask,
            join=functools.partial(self.scored, p),
            scale=self.scale or None,
            soft_cap=self.soft_cap,
            sinks=sinks,
            key_bias=ctx.key_bias,
            own=state is None,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        if state is not None:
            out = jnp.where(state.overflowed[:, None, None, None], jnp.nan, out)
        if self.out_gate:
            gate = dense(x_BLD, p["gate"])
            gate = gate + p["gate_bias"].astype(gate.dtype) if self.qkv_bias else gate
            out = out * jax.nn.sigmoid(dist.constrain(gate, ("batch", None, "heads", None, None))).reshape(out.shape)
        return self.unproject(p, out), state
