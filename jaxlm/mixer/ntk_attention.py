"""NTK-attention: softmax attention after an infinitely long prefix, whose keys and values are two learned sums.

    o_t = (sum_{s <= t} e_ts v_s + phi(q_t)^T Z) / (sum_{s <= t} e_ts + phi(q_t)^T z)
    phi(x) = elu(x / K^(1/4)) + 1,      e_ts = exp(q_t . k_s / sqrt(K))

Were m virtual tokens put in front, as in prefix tuning, and exp(q . k / sqrt(K)) near phi(q) . phi(k), all of them
would be Z = sum phi(k_i) v_i^T and z = sum phi(k_i), whatever m. Learned: the projections of `jaxlm.mixer.heads`, Z
(K, K) and z (K) of each head, the latter through softplus, so that the denominator cannot cross 0. A prefix has no
positions: phi takes queries as they are before their rotation.

Claimed: prefix tuning with an infinitely long prefix at no cost by its length (Liang et al. 2024, Towards Infinite-Long
Prefix in Transformer).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.cache.full import FullCache
from jaxlm.core.config import slot
from jaxlm.core.errors import choose
from jaxlm.core.params import Constant, ParamSpec, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.attend import hold, own_params
from jaxlm.mixer.heads import Heads
from jaxlm.ops.attention import IMPLEMENTATIONS, attention, merge


@dataclasses.dataclass(frozen=True)
class NtkAttention(Heads):
    """Softmax attention with an infinitely long prefix.

    Attributes:
      heads, kv_heads, head_dim, position, scale, soft_cap, qk_norm, ...: of `Heads`.
      mask: which keys a query sees; all see the prefix.
      implementation: a back end of `jaxlm.ops.attention`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Liang et al. 2024, Towards Infinite-Long Prefix in Transformer"
    streaming: ClassVar[bool] = True

    mask: Any = slot("mask", "causal")
    implementation: str = "auto"

    def check(self) -> None:
        super().check()
        choose("NtkAttention.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    @property
    def causal(self) -> bool:
        return self.mask.causal

    def params(self, dims: Dims) -> Specs:
        width = self.dims(dims).head_dim
        shape = self.groups, self.heads // self.groups, width
        axes = "heads", None, None
        return {
            **super().params(dims),
            "prefix_values": ParamSpec((*shape, width), (*axes, None), zeros, decay=False),
            # Together about as much as one key, of value 0, at first.
            "prefix_weights": ParamSpec(shape, axes, Constant(math.log(math.expm1(1 / width))), decay=False),
        }

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> FullCache:
        """An empty cache of policy ``cache`` for ``max_length`` tokens."""
        return self.empty_cache(dims, batch, max_length, dtype, cache, self.mask)

    def flops(self, dims: Dims, length: int) -> float:
        """Scores and weighted sum over the keys a token sees, and the prefix: 4 H K per key, 2 H K (K + 1)."""
        own = self.dims(dims)
        return own.heads * own.head_dim * (4.0 * self.mask.mean_keys(length) + 2.0 * (own.head_dim + 1))

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: FullCache | None = None
    ) -> tuple[jax.Array, FullCache | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue what the cache holds.

        Rows whose cache has overflowed read NaN.
        """
        q, k, v = self.project(p, x_BLD)
        where = own_params(self.position, p, ctx)
        own = state is None
        held, state = hold(self.position, where, x_BLD, k, v, ctx, state)
        if held.rotated:
            views: list[Any] = [(self.position.rotate(where, q, ctx.positions, ctx.length), held.k, None)]
        else:
            views = self.position.views(where, q, held.k, ctx.positions, held.positions, ctx.length)
        parts: list[Any] = [self._of_prefix(p, q)]
        for view_q, view_k, region in views:
            scored_q, scored_k = self.scored(p, view_q, view_k)
            parts.append(
                attention(
                    scored_q,
                    scored_k,
                    held.v,
                    mask=self.mask if region is None else self.mask & region,
                    positions=None if own and ctx.slots else (ctx.positions, held.positions),
                    segment_ids=held.segments,
                    bias=self.position.bias(where, view_q, view_k, ctx.positions, held.positions, held.side),
                    scale=self.scale or None,
                    soft_cap=self.soft_cap,
                    ordered=own and ctx.ordered,
                    implementation=None if self.implementation == "auto" else self.implementation,
                    return_lse=True,
                )
            )
        out = functools.reduce(lambda a, b: merge(*a, *b), parts)[0]
        if state is not None:
            out = jnp.where(state.overflowed[:, None, None, None], jnp.nan, out)
        return self.unproject(p, out.astype(x_BLD.dtype)), state

    def _of_prefix(self, p: Params, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What attention to the prefix alone gives q [B, L, H, K]: float32 [B, L, H, K], and its log-sum-exp [B, H, L].

        As a part of the softmax over both it is merged by that, which no score overflows.
        """
        width = q.shape[-1]
        phi = jax.nn.elu(q.astype(jnp.float32) * (self.scale or width**-0.5) ** 0.5) + 1
        flat = lambda name, *rest: p[name].astype(jnp.float32).reshape(self.heads, width, *rest)
        values, weights = flat("prefix_values", width), jax.nn.softplus(flat("prefix_weights"))
        total = jnp.einsum("blhk,hk->blh", phi, weights, precision="highest")
        total = jnp.maximum(total, 1e-30)
        out = jnp.einsum("blhk,hkv->blhv", phi, values, precision="highest") / total[..., None]
        return out, jnp.log(total).transpose(0, 2, 1)
