"""Softmax attention: multi-head, grouped-query (Ainslie et al. 2023) and multi-query (Shazeer 2019) in one file.

Learned: the fused projection qkv (D, G, R + 2, K), R query heads beside the key and value of their group, so that
sharding G moves no data; the output projection (G, R, K, D). Positions, mask, query/key norm and cache are slots.
A sink is a learned logit per head that joins the softmax's denominator and carries no value (GPT-OSS; Xiao et al. 2023,
Efficient Streaming Language Models with Attention Sinks).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.cache.full import FullCache
from jaxlm.core.config import Spec, require, slot
from jaxlm.core.errors import choose
from jaxlm.core.params import FanIn, ParamSpec, map_specs, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.attend import attend, hold, own_params
from jaxlm.ops.attention import IMPLEMENTATIONS
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class QkvInit:
    """Fan-in normal, the query part times ``query``: logits start at unit variance whatever their scale, as in T5."""

    query: float = 1.0

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        qkv = FanIn()(key, spec)
        return qkv if self.query == 1 else qkv.at[..., :-2, :].multiply(self.query)


@dataclasses.dataclass(frozen=True)
class Attention(Spec):
    """Softmax attention.

    Attributes:
      heads: query heads H.
      kv_heads: key/value heads G, a divisor of ``heads``; 0 for as many.
      head_dim: head width K; 0 for ``width / heads``.
      position: how tokens learn where they are.
      mask: which keys a query sees.
      scale: factor of the logits; 0 for 1 / sqrt(K). The T5 family, and the length-generalization paper, use 1 and
        absorb it in the initial queries; so does this.
      soft_cap: if positive, logits pass through ``cap * tanh(logits / cap)`` (Gemma 2).
      qk_norm: normalisation of queries and keys, or None.
      qk_norm_span: ``"head"`` over each head, one gain [K] for all (Qwen 3); ``"heads"`` over each head, a gain each
        (Cohere, StableLM 2); ``"all"`` over the channels of all heads together (OLMo 2).
      qk_norm_rotated: whether they are normalised after their rotation (HunYuan), which a gain tells apart. A step then
        normalises all keys of the cache.
      qkv_bias, out_bias: learned offsets.
      qkv_clip: if positive, queries, keys and values (normalised, not yet rotated) stay within plus and minus this
        (MPT, OLMo).
      sinks: whether each head has a learned sink logit.
      implementation: a back end of `jaxlm.ops.attention`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need"
    streaming: ClassVar[bool] = True

    heads: int = 8
    kv_heads: int = 0
    head_dim: int = 0
    position: Any = slot("position", "rotary")
    mask: Any = slot("mask", "causal")
    scale: float = 0.0
    soft_cap: float = 0.0
    qk_norm: Any = slot("norm", None, optional=True)
    qk_norm_span: str = "head"
    qk_norm_rotated: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qkv_clip: float = 0.0
    sinks: bool = False
    implementation: str = "auto"

    def check(self) -> None:
        require(
            self.heads > 0 and self.kv_heads >= 0 and self.head_dim >= 0,
            f"Attention: expected heads > 0, kv_heads >= 0 and head_dim >= 0, "
            f"got {self.heads}, {self.kv_heads} and {self.head_dim}",
        )
        require(
            self.heads % (self.kv_heads or self.heads) == 0,
            f"Attention.kv_heads: expected a divisor of heads {self.heads}, got {self.kv_heads}",
        )
        require(not hasattr(self.scale, "aval"), "Attention.scale must be one number for all layers")
        for name in ("soft_cap", "qkv_clip"):
            value = getattr(self, name)
            require(value >= 0, f"Attention.{name}: expected a number >= 0, got {value}")
        choose("Attention.qk_norm_span", self.qk_norm_span, ("head", "heads", "all"))
        require(
            self.qk_norm_span == "head" or not self.qk_norm_rotated,
            f"Attention.qk_norm_rotated needs qk_norm_span 'head', got {self.qk_norm_span!r}",
        )
        choose("Attention.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    @property
    def causal(self) -> bool:
        return self.mask.causal

    def dims(self, dims: Dims) -> Dims:
        """``dims`` with this layer's heads; raises `ConfigError` if the width cannot be divided."""
        require(
            self.head_dim or dims.width % self.heads == 0,
            f"model width {dims.width} is not divisible by {self.heads} attention heads; set head_dim or another width",
        )
        return dataclasses.replace(dims, heads=self.heads, head_dim=self.head_dim or dims.width // self.heads)

    def params(self, dims: Dims) -> Specs:
        own = self.dims(dims)
        groups, width = self.kv_heads or self.heads, own.head_dim
        repeats = self.heads // groups
        specs: Specs = {
            "qkv": ParamSpec(
                (dims.width, groups, repeats + 2, width),
                ("embed", "heads", None, None),
                QkvInit(width**-0.5 / self.scale if self.scale else 1.0),
            ),
            "out": ParamSpec((groups, repeats, width, dims.width), ("heads", None, None, "embed"), fan_in=(0, 1, 2)),
        }
        if self.qkv_bias:
            specs["qkv_bias"] = ParamSpec((groups, repeats + 2, width), ("heads", None, None), zeros, decay=False)
        if self.out_bias:
            specs["out_bias"] = ParamSpec((dims.width,), (None,), zeros, decay=False)
        if self.sinks:
            specs["sinks"] = ParamSpec((groups, repeats), ("heads", None), zeros, decay=False)
        if self.qk_norm is not None:
            for name, lead in (("q_norm", (groups, repeats)), ("k_norm", (groups,))):
                specs[name] = self._gains(self.qk_norm.params(width), lead)
        if self.position.scope == "layer" and (inner := self.position.params(own)):
            specs["position"] = inner
        return specs

    def _gains(self, specs: Specs, lead: tuple[int, ...]) -> Specs:
        """The norm's parameters for one head, as this span wants them: beside their heads unless shared by all."""
        if self.qk_norm_span == "head":
            return specs
        axes = ("heads", *(None,) * (len(lead) - 1))
        return map_specs(
            lambda _, one: dataclasses.replace(one, shape=(*lead, *one.shape), axes=(*axes, *one.axes)), specs
        )

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> FullCache:
        """An empty cache of policy ``cache`` for ``max_length`` tokens."""
        own = self.dims(dims)
        return cache.init(
            batch, max_length, self.kv_heads or self.heads, own.head_dim, dtype, pre_rotate=self.position.pre_rotate
        )

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
        q, k, v = self._project(p, x_BLD)
        where = own_params(self.position, p, ctx)
        held, state = hold(self.position, where, k, v, ctx, state)
        out, lse = attend(
            self.position,
            where,
            q,
            held,
            held.v,
            ctx,
            mask=self.mask,
            join=functools.partial(self._scored, p),
            scale=self.scale or None,
            soft_cap=self.soft_cap,
            ordered=state is None and ctx.ordered,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        if self.sinks:
            kept = jax.nn.sigmoid(lse - p["sinks"].reshape(-1, 1))  # [B, H, L], the share that is not the sink's
            out = (out * kept.transpose(0, 2, 1)[..., None]).astype(out.dtype)
        if state is not None:
            out = jnp.where(state.overflowed[:, None, None, None], jnp.nan, out)
        y = dense(out.reshape(*out.shape[:2], *p["out"].shape[:3]), p["out"], inputs=3)
        if self.out_bias:
            y = y + p["out_bias"].astype(y.dtype)
        return y, state

    def _project(self, p: Params, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q [B, L, H, K], k and v [B, L, G, K], not yet rotated; normalised, unless that comes after."""
        qkv = dense(x, p["qkv"])
        if self.qkv_bias:
            qkv = qkv + p["qkv_bias"].astype(qkv.dtype)
        qkv = dist.constrain(qkv, ("batch", None, "heads", None, None))
        q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        if self.qk_norm is not None and not self.qk_norm_rotated:
            q, k = self._normalised(p["q_norm"], q), self._normalised(p["k_norm"], k)
        if self.qkv_clip:
            q, k, v = (jnp.clip(x, -self.qkv_clip, self.qkv_clip) for x in (q, k, v))
        return q.reshape(*q.shape[:2], self.heads, q.shape[-1]), k, v

    def _scored(self, p: Params, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the logits are products of, from queries and keys that are rotated."""
        if self.qk_norm is None or not self.qk_norm_rotated:
            return q, k
        return self.qk_norm(p["q_norm"], q), self.qk_norm(p["k_norm"], k)

    def _normalised(self, p: Params, x: jax.Array) -> jax.Array:
        """Queries [B, L, G, R, K] or keys [B, L, G, K]."""
        if self.qk_norm_span != "all":
            return self.qk_norm(p, x)
        flat = {name: gain.reshape(-1) for name, gain in p.items()}
        return self.qk_norm(flat, x.reshape(*x.shape[:2], -1)).reshape(x.shape)
