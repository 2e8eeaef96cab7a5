"""What attention mixers have in common: projections to heads and back, query/key norm and position.

Learned: the fused projection qkv (D, G, R + 2, K), R query heads beside the key and value of their group, so that
sharding G moves no data; the output projection (G, R, K, D). With adapters, three low-rank terms beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import Spec, require, slot
from jaxlm.core.errors import choose
from jaxlm.core.params import FanIn, ParamSpec, map_specs, zeros
from jaxlm.core.types import Dims, Mask, Params, Specs
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class QkvInit:
    """Fan-in normal, the query part times ``query``: logits start at unit variance whatever their scale, as in T5."""

    query: float = 1.0

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        qkv = FanIn()(key, spec)
        return qkv if self.query == 1 else qkv.at[..., :-2, :].multiply(self.query)


@dataclasses.dataclass(frozen=True)
class Heads(Spec):
    """Queries, keys and values of H heads, and the way back; the base of a mixer, whose fields these are.

    Attributes:
      heads: query heads H.
      kv_heads: key/value heads G, a divisor of ``heads``; 0 for as many.
      head_dim: head width K; 0 for ``width / heads``.
      position: how tokens learn where they are.
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
      adapter: rank of a term that queries, keys and values each have beside their projection, x A B, which stays each
        layer's own where layers share the rest (Zamba2); 0 for none.
    """

    heads: int = 8
    kv_heads: int = 0
    head_dim: int = 0
    position: Any = slot("position", "rotary")
    scale: float = 0.0
    soft_cap: float = 0.0
    qk_norm: Any = slot("norm", None, optional=True)
    qk_norm_span: str = "head"
    qk_norm_rotated: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qkv_clip: float = 0.0
    adapter: int = 0

    def check(self) -> None:
        name = type(self).__name__
        require(
            self.heads > 0 and self.kv_heads >= 0 and self.head_dim >= 0,
            f"{name}: expected heads > 0, kv_heads >= 0 and head_dim >= 0, "
            f"got {self.heads}, {self.kv_heads} and {self.head_dim}",
        )
        require(
            self.heads % (self.kv_heads or self.heads) == 0,
            f"{name}.kv_heads: expected a divisor of heads {self.heads}, got {self.kv_heads}",
        )
        require(not hasattr(self.scale, "aval"), f"{name}.scale must be one number for all layers")
        for field in ("soft_cap", "qkv_clip", "adapter"):
            value = getattr(self, field)
            require(value >= 0, f"{name}.{field}: expected a number >= 0, got {value}")
        choose(f"{name}.qk_norm_span", self.qk_norm_span, ("head", "heads", "all"))
        require(
            self.qk_norm_span == "head" or not self.qk_norm_rotated,
            f"{name}.qk_norm_rotated needs qk_norm_span 'head', got {self.qk_norm_span!r}",
        )

    @property
    def groups(self) -> int:
        """G, the number of key/value heads."""
        return self.kv_heads or self.heads

    def dims(self, dims: Dims) -> Dims:
        """``dims`` with this layer's heads; raises `ConfigError` if the width cannot be divided."""
        require(
            self.head_dim or dims.width % self.heads == 0,
            f"model width {dims.width} is not divisible by {self.heads} attention heads; set head_dim or another width",
        )
        return dataclasses.replace(dims, heads=self.heads, head_dim=self.head_dim or dims.width // self.heads)

    def params(self, dims: Dims) -> Specs:
        own = self.dims(dims)
        groups, width = self.groups, own.head_dim
        repeats, reach = self.heads // groups, dims.out or dims.width
        specs: Specs = {
            "qkv": ParamSpec(
                (dims.width, groups, repeats + 2, width),
                ("embed", "heads", None, None),
                QkvInit(width**-0.5 / self.scale if self.scale else 1.0),
            ),
            "out": ParamSpec((groups, repeats, width, reach), ("heads", None, None, "embed"), fan_in=(0, 1, 2)),
        }
        if self.qkv_bias:
            specs["qkv_bias"] = ParamSpec((groups, repeats + 2, width), ("heads", None, None), zeros, decay=False)
        if self.out_bias:
            specs["out_bias"] = ParamSpec((reach,), (None,), zeros, decay=False)
        if rank := self.adapter:
            specs["adapter_in"] = ParamSpec((dims.width, 3, rank), ("embed", None, None), own=True)
            specs["adapter_q"] = ParamSpec((rank, groups, repeats, width), (None, "heads", None, None), own=True)
            for name in ("adapter_k", "adapter_v"):
                specs[name] = ParamSpec((rank, groups, 1, width), (None, "heads", None, None), own=True)
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

    def project(self, p: Params, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q [B, L, H, K], k and v [B, L, G, K], not yet rotated; normalised, unless that comes after."""
        qkv = dense(x, p["qkv"])
        if self.adapter:
            low = dense(x, p["adapter_in"])
            qkv = qkv + jnp.concatenate([dense(low[..., i, :], p[f"adapter_{n}"]) for i, n in enumerate("qkv")], -2)
        if self.qkv_bias:
            qkv = qkv + p["qkv_bias"].astype(qkv.dtype)
        qkv = dist.constrain(qkv, ("batch", None, "heads", None, None))
        q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        if self.qk_norm is not None and not self.qk_norm_rotated:
            q, k = self._normalised(p["q_norm"], q), self._normalised(p["k_norm"], k)
        if self.qkv_clip:
            q, k, v = (jnp.clip(x, -self.qkv_clip, self.qkv_clip) for x in (q, k, v))
        return q.reshape(*q.shape[:2], self.heads, q.shape[-1]), k, v

    def unproject(self, p: Params, out: jax.Array) -> jax.Array:
        """What the heads have read, [B, L, H, K], as [B, L, D]."""
        y = dense(out.reshape(*out.shape[:2], *p["out"].shape[:3]), p["out"], inputs=3)
        if self.out_bias:
            y = y + p["out_bias"].astype(y.dtype)
        return y

    def scored(self, p: Params, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
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

    def empty_cache(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any, mask: Mask) -> Any:
        """An empty cache of policy ``cache`` for ``max_length`` tokens that queries read through ``mask``."""
        own = self.dims(dims)
        return cache.init(
            batch,
            max_length,
            self.groups,
            own.head_dim,
            dtype,
            pre_rotate=self.position.pre_rotate,
            side_width=self.position.side_width(own),
            mask=mask,
        )
