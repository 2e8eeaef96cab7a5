"""Additive attention: what recurrent translators looked at their source with.

    a_ij = softmax_j( v^T tanh(W x_i + U x_j) )        y_i = O sum_j a_ij V x_j

Source and target are one stream: a layer of this between LSTM layers, x its queries' output, reads the tokens before
(``mask`` causal) and, of a source, also those after (``mask`` prefix), and the residual adds the context to what it
came from, where GNMT concatenates them (Wu et al. 2016). W, U and V are q, k and v of `jaxlm.mixer.heads`. Learned:
these, v of each head, O.

Claimed: sentences of any length are translated, where one vector for the whole source fails (Bahdanau et al. 2015).
`experiments.state_space` shows that it makes the order of the source irrelevant.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.cache.full import FullCache
from jaxlm.core.config import require, slot
from jaxlm.core.errors import choose
from jaxlm.core.params import FanIn, ParamSpec
from jaxlm.core.types import Context, Dims, Params, RowBias, Specs
from jaxlm.mixer.attend import hold, own_params
from jaxlm.mixer.heads import Heads
from jaxlm.ops.additive_attention import IMPLEMENTATIONS, additive_attention


@dataclasses.dataclass(frozen=True)
class AdditiveAttention(Heads):
    """Additive attention.

    Attributes:
      heads, kv_heads, head_dim, qk_norm, ...: of `Heads`. ``scale`` and ``soft_cap`` are of products, and refused.
      position: an encoding that embeds or whose bias adds to the scores, or none.
      mask: which keys a query sees.
      block: queries that meet all keys at once.
      implementation: a back end of `jaxlm.ops.additive_attention`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Bahdanau et al. 2015, Neural Machine Translation by Jointly Learning to Align and Translate"
    streaming: ClassVar[bool] = True

    heads: int = 1
    position: Any = slot("position", "none")
    mask: Any = slot("mask", "causal")
    block: int = 16
    implementation: str = "auto"

    def check(self) -> None:
        super().check()
        for field in ("scale", "soft_cap"):
            value = getattr(self, field)
            require(value == 0, f"AdditiveAttention.{field}: there are no products to scale; expected 0, got {value}")
        require(self.block > 0, f"AdditiveAttention.block: expected a positive integer, got {self.block}")
        choose("AdditiveAttention.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    @property
    def causal(self) -> bool:
        return self.mask.causal

    def params(self, dims: Dims) -> Specs:
        own = self.dims(dims)
        shape = self.groups, self.heads // self.groups, own.head_dim
        return {**super().params(dims), "scorer": ParamSpec(shape, ("heads", None, None), FanIn(), fan_in=(2,))}

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> FullCache:
        """An empty cache of policy ``cache`` for ``max_length`` tokens."""
        return self.empty_cache(dims, batch, max_length, dtype, cache, self.mask)

    def flops(self, dims: Dims, length: int) -> float:
        """Sum, tanh, its product and the weighted sum over the keys a token sees: 6 H K per key."""
        own = self.dims(dims)
        return 6.0 * own.heads * own.head_dim * self.mask.mean_keys(length)

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: FullCache | None = None
    ) -> tuple[jax.Array, FullCache | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue what the cache holds.

        Rows whose cache has overflowed read NaN. Raises `ConfigError` for a position encoding that is none of those.
        """
        q, k, v = self.project(p, x_BLD)
        where = own_params(self.position, p, ctx)
        held, state = hold(self.position, where, x_BLD, k, v, ctx, state)
        bias = self.position.bias(where, q, held.k, ctx.positions, held.positions, held.side)
        views = self.position.views(where, q, held.k, ctx.positions, held.positions, ctx.length)
        require(
            not isinstance(bias, RowBias) and len(views) == 1 and views[0][0] is q and views[0][1] is held.k,
            f"AdditiveAttention.position: {type(self.position).__name__} acts on products of queries and keys; "
            "allowed are encodings that embed, that add a bias by position, and none",
        )
        q, k = self.scored(p, q, held.k)
        ones = jnp.ones(q.shape[:2], jnp.int32)
        seg_q, seg_k = held.segments or (ones, ones)
        out = additive_attention(
            q,
            k,
            held.v,
            p["scorer"].reshape(self.heads, -1),
            (jnp.broadcast_to(ctx.positions, q.shape[:2]), held.positions, seg_q, seg_k),
            mask=self.mask,
            bias=bias,  # pyright: ignore[reportArgumentType]  # see above
            block=self.block,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        if state is not None:
            out = jnp.where(state.overflowed[:, None, None, None], jnp.nan, out)
        return self.unproject(p, out), state
