"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1): keys and values out of one small latent.

    c_t = norm(x_t W_down)                     the latent, C wide
    k_t,h = [c_t W_k,h ; rot(x_t W_r)]         N channels of each head, and R rotated ones that all heads share
    v_t,h = c_t W_v,h
    q_t,h = [u_t W_q,h ; rot(u_t W_qr,h)]      u = x, or norm(x W) of a query latent

Learned: these projections and the output's. Claimed: the quality of multi-head attention with a cache of C + R numbers
a token, where heads * (key + value width) would be. The cache holds c_t and the rotary key and nothing else.

Two forms compute the same: the one above, and the absorbed one in which each query moves into the latent space
(q W_k^T) and its result out of it (... W_v), so that no key or value is ever made. It is multi-query attention over
[c ; rotary key], wider per key but without a product per cached token, so single steps want it and long pieces do not;
which is cheaper follows from the shapes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.cache.full import FullCache
from jaxlm.core.config import Spec, require, slot
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.attend import attend, hold, own_params
from jaxlm.ops.attention import IMPLEMENTATIONS
from jaxlm.ops.dense import dense


@dataclasses.dataclass(frozen=True)
class Mla(Spec):
    """Multi-head latent attention.

    Attributes:
      heads: H.
      q_rank: width of the query latent; 0 for queries straight from the input (DeepSeek-V2-Lite).
      kv_rank: C, width of the latent that keys and values come from.
      nope_dim: N, channels of a head's query and key that carry no position.
      rope_dim: R, channels that do; the key's are shared by all heads.
      value_dim: channels of a head's value.
      position: the encoding of those channels.
      mask: which keys a query sees.
      norm: of the latents.
      scale: factor of the logits; 0 for 1 / sqrt(N + R).
      bias: whether the projections into latents and the output have learned offsets.
      implementation: a back end of `jaxlm.ops.attention`, or ``"auto"``.
    """

    paper: ClassVar[str] = "DeepSeek-AI 2024, DeepSeek-V2: A Strong, Economical, and Efficient MoE Language Model"
    streaming: ClassVar[bool] = True

    heads: int = 8
    q_rank: int = 0
    kv_rank: int = 64
    nope_dim: int = 16
    rope_dim: int = 8
    value_dim: int = 16
    position: Any = slot("position", "rotary")
    mask: Any = slot("mask", "causal")
    norm: Any = slot("norm", "rms")
    scale: float = 0.0
    bias: bool = False
    implementation: str = "auto"

    def check(self) -> None:
        for name in ("heads", "kv_rank", "nope_dim", "rope_dim", "value_dim"):
            value = getattr(self, name)
            require(value > 0, f"Mla.{name}: expected a positive integer, got {value}")
        require(self.q_rank >= 0, f"Mla.q_rank: expected an integer >= 0, got {self.q_rank}")
        require(not hasattr(self.scale, "aval"), "Mla.scale must be one number for all layers")
        choose("Mla.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    @property
    def causal(self) -> bool:
        return self.mask.causal

    def dims(self, dims: Dims) -> Dims:
        """``dims`` with this layer's heads, as its position encoding sees them."""
        return dataclasses.replace(dims, heads=self.heads, head_dim=self.rope_dim)

    def params(self, dims: Dims) -> Specs:
        width, heads, query = dims.width, self.heads, self.nope_dim + self.rope_dim
        latent = self.kv_rank + self.rope_dim
        specs: Specs = {
            "q_up": ParamSpec((self.q_rank or width, heads, query), (None if self.q_rank else "embed", "heads", None)),
            "kv_down": ParamSpec((width, latent), ("embed", None)),
            "kv_norm": self.norm.params(self.kv_rank),
            "kv_up": ParamSpec((self.kv_rank, heads, self.nope_dim + self.value_dim), (None, "heads", None)),
            "out": ParamSpec((heads, self.value_dim, width), ("heads", None, "embed"), fan_in=(0, 1)),
        }
        if self.q_rank:
            specs |= {
                "q_down": ParamSpec((width, self.q_rank), ("embed", None)),
                "q_norm": self.norm.params(self.q_rank),
            }
        if self.bias:
            sizes = {"kv_down": latent, "out": width} | ({"q_down": self.q_rank} if self.q_rank else {})
            specs |= {f"{name}_bias": ParamSpec((n,), (None,), zeros, decay=False) for name, n in sizes.items()}
        if self.position.scope == "layer" and (inner := self.position.params(self.dims(dims))):
            specs["position"] = inner
        return specs

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> FullCache:
        """An empty cache of policy ``cache``: its keys are the rotary keys, its values the latents, of one head."""
        return cache.init(
            batch,
            max_length,
            1,
            self.rope_dim,
            dtype,
            pre_rotate=self.position.pre_rotate,
            value_width=self.kv_rank,
            side_width=self.position.side_width(self.dims(dims)),
            mask=self.mask,
        )

    def flops(self, dims: Dims, length: int) -> float:
        """Scores and weighted sum over the keys a token sees, in the form that makes keys and values."""
        return 2.0 * self.heads * (self.nope_dim + self.rope_dim + self.value_dim) * self.mask.mean_keys(length)

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: FullCache | None = None
    ) -> tuple[jax.Array, FullCache | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue what the cache holds.

        Rows whose cache has overflowed read NaN.
        """
        source = self.norm(p["q_norm"], self._project(p, "q_down", x_BLD)) if self.q_rank else x_BLD
        q = dist.constrain(dense(source, p["q_up"]), ("batch", None, "heads", None))
        q_plain, q_turned = q[..., : self.nope_dim], q[..., self.nope_dim :]
        down = self._project(p, "kv_down", x_BLD)
        latent = self.norm(p["kv_norm"], down[..., : self.kv_rank])
        where = own_params(self.position, p, ctx)
        k_turned = down[..., None, self.kv_rank :]
        held, state = hold(self.position, where, x_BLD, k_turned, latent[:, :, None], ctx, state)
        up = p["kv_up"].astype(q.dtype)
        absorbed = self._absorbed_is_cheaper(q.shape[1], held.k.shape[1])
        if absorbed:
            q_plain = jnp.einsum("blhn,chn->blhc", q_plain, up[..., : self.nope_dim])
            k_plain = values = held.v
        else:
            made = dist.constrain(dense(held.v[:, :, 0], up), ("batch", None, "heads", None))
            k_plain, values = made[..., : self.nope_dim], made[..., self.nope_dim :]

        def join(q_turned: jax.Array, k_turned: jax.Array) -> tuple[jax.Array, jax.Array]:
            k_turned = jnp.broadcast_to(k_turned, (*k_plain.shape[:3], self.rope_dim))
            return jnp.concatenate((q_plain, q_turned), -1), jnp.concatenate((k_plain, k_turned), -1)

        out = attend(
            self.position,
            where,
            q_turned,
            held,
            values,
            ctx,
            mask=self.mask,
            join=join,
            scale=self.scale or (self.nope_dim + self.rope_dim) ** -0.5,
            own=state is None,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        if absorbed:
            out = jnp.einsum("blhc,chv->blhv", out, up[..., self.nope_dim :])
        if state is not None:
            out = jnp.where(state.overflowed[:, None, None, None], jnp.nan, out)
        y = dense(out, p["out"], inputs=2)
        return (y + p["out_bias"].astype(y.dtype) if self.bias else y), state

    def _project(self, p: Params, name: str, x: jax.Array) -> jax.Array:
        y = dense(x, p[name])
        return y + p[f"{name}_bias"].astype(y.dtype) if self.bias else y

    def _absorbed_is_cheaper(self, queries: int, keys: int) -> bool:
        """Multiplications per head: making each key and value, or moving each query and result, and the attention."""
        made = self.nope_dim + self.value_dim
        return queries * (self.kv_rank * made + keys * (2 * self.kv_rank + self.rope_dim)) < keys * (
            self.kv_rank * made + queries * (made + self.rope_dim)
        )
