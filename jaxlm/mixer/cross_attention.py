"""Cross-attention: softmax(scale q(x) k(m)^T + bias) v(m), of the decoder's tokens x over m, which an encoder gave
(``ctx.memory``), whatever the order of either; a query reads the memory of its own segment (Vaswani et al. 2017).

Learned: q (D, G, R, K), kv (D, G, 2, K), the output projection (G, R, K, D). The state is the projected memory,
computed by the call that is given one and read by those that follow. Shown by: tests/model/test_encoder_decoder.py,
and the T5 checkpoints of tests/interop/test_t5.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.attention.mask import Bidirectional
from jaxlm.core.config import require, slot
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.params import FanIn, ParamSpec, zeros
from jaxlm.core.types import Context, Dims, Memory, Params, Specs
from jaxlm.mixer.attend import Held, attend
from jaxlm.mixer.heads import Heads
from jaxlm.ops.attention import IMPLEMENTATIONS
from jaxlm.ops.dense import dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projected:
    """State of one layer: the memory as its keys and values.

    Attributes:
      k, v: [B, S, G, K].
      segment: int32 [B, S], 0 where nothing is read.
      bias: float32 [B, S], added to the logits of each key.
      cursor: int32 scalar, 0 until there is a memory: who reads before that reads NaN.
    """

    k: jax.Array
    v: jax.Array
    segment: jax.Array
    bias: jax.Array
    cursor: jax.Array


@dataclasses.dataclass(frozen=True)
class CrossAttention(Heads):
    """Attention over an encoder's output.

    Attributes:
      heads, kv_heads, head_dim, scale, soft_cap, qk_norm, ...: of `Heads`, without positions and adapters.
      softmax1: whether each head has a sink of logit 0, as of `Attention`.
      implementation: a back end of `jaxlm.ops.attention`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need"
    streaming: ClassVar[bool] = True
    causal: ClassVar[bool] = True  # over its own tokens, of which it reads one
    reads_memory: ClassVar[bool] = True

    position: Any = slot("position", "none")
    softmax1: bool = False
    implementation: str = "auto"

    def check(self) -> None:
        super().check()
        choose("CrossAttention.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))
        require(not self.position.says_where, "CrossAttention.position: expected 'none'; it reads two texts, not one")
        require(not self.adapter and not self.qk_norm_rotated, "CrossAttention has no adapter and no qk_norm_rotated")

    def params(self, dims: Dims) -> Specs:
        specs = super().params(dims)
        qkv = specs.pop("qkv")
        _, groups, parts, width = qkv.shape
        specs["q"] = ParamSpec((dims.width, groups, parts - 2, width), qkv.axes, FanIn(qkv.init.query))
        specs["kv"] = ParamSpec((dims.width, groups, 2, width), qkv.axes)
        if self.qkv_bias:
            del specs["qkv_bias"]
            for name, many in (("q_bias", parts - 2), ("kv_bias", 2)):
                specs[name] = ParamSpec((groups, many, width), ("heads", None, None), zeros, decay=False)
        return specs

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> Projected:
        """An empty state for a memory of ``dims.source`` places, whatever ``max_length`` and ``cache``.

        Raises `ConfigError` where there is no encoder.
        """
        if not dims.source:
            raise ConfigError(
                "mixer 'cross_attention' reads an encoder, and this is a decoder alone: "
                "make the state with jaxlm.init_state(model, batch, max_length, source_length=...) of an EncoderDecoder"
            )
        shape = (batch, dims.source, self.groups, self.dims(dims).head_dim)
        rows = shape[:2]
        return Projected(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            segment=jnp.zeros(rows, jnp.int32),
            bias=jnp.zeros(rows, jnp.float32),
            cursor=jnp.int32(0),
        )

    def flops(self, dims: Dims, length: int) -> float:
        """Scores and weighted sum over a memory of ``length`` places: 4 H K per key."""
        own = self.dims(dims)
        return 4.0 * own.heads * own.head_dim * length

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: Projected | None = None
    ) -> tuple[jax.Array, Projected | None]:
        """[B, L, D] -> [B, L, D]. A memory in ``ctx`` takes the place of what the state holds.

        Raises `ConfigError` if there is neither, or a memory of another length than the state has room for.
        """
        bias = None if ctx.memory is None else ctx.memory.bias
        if ctx.memory is not None:
            k, v = self.project_memory(p, ctx.memory)
            batch, size = k.shape[:2]
            segment = ctx.memory.segment_ids
            if state is not None:
                require(
                    state.k.shape == k.shape,
                    f"state: made for a source of {state.k.shape[1]} places and {state.k.shape[0]} rows; "
                    f"the memory has {size} and {batch}",
                )
                state = Projected(
                    k=k.astype(state.k.dtype),
                    v=v.astype(state.v.dtype),
                    segment=jnp.ones((batch, size), jnp.int32) if segment is None else segment,
                    bias=jnp.zeros((batch, size), jnp.float32) if bias is None else bias,
                    cursor=jnp.int32(size),
                )
        elif state is not None:
            k, v, segment, bias = state.k, state.v, state.segment, state.bias
        else:
            raise ConfigError(
                "mixer 'cross_attention' reads an encoder, and there is no memory: call an EncoderDecoder"
            )
        segments = None
        if segment is not None or ctx.segment_ids is not None:
            rows = ctx.segment_ids
            segments = (
                jnp.ones(x_BLD.shape[:2], jnp.int32) if rows is None else rows,
                jnp.ones(k.shape[:2], jnp.int32) if segment is None else segment,
            )
        out = attend(
            self.position,
            {},
            self.queries(p, x_BLD),
            Held(k, v, jnp.zeros((1, k.shape[1]), jnp.int32), segments, None, rotated=False),
            v,
            ctx,
            mask=Bidirectional(),
            scale=self.scale or None,
            soft_cap=self.soft_cap,
            sinks=jnp.zeros(self.heads) if self.softmax1 else None,
            key_bias=bias,
            own=False,
            implementation=None if self.implementation == "auto" else self.implementation,
        )
        if state is not None and ctx.memory is None:
            out = jnp.where(state.cursor > 0, out, jnp.nan)
        return self.unproject(p, out), state

    def queries(self, p: Params, x: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, H, K]."""
        q = dense(x, p["q"])
        q = q + p["q_bias"].astype(q.dtype) if self.qkv_bias else q
        q = dist.constrain(q, ("batch", None, "heads", None, None))
        q = q if self.qk_norm is None else self._normalised(p["q_norm"], q)
        q = jnp.clip(q, -self.qkv_clip, self.qkv_clip) if self.qkv_clip else q
        return q.reshape(*q.shape[:2], self.heads, q.shape[-1])

    def project_memory(self, p: Params, memory: Memory) -> tuple[jax.Array, jax.Array]:
        """k and v [B, S, G, K]."""
        kv = dense(memory.hidden, p["kv"])
        kv = kv + p["kv_bias"].astype(kv.dtype) if self.qkv_bias else kv
        kv = dist.constrain(kv, ("batch", None, "heads", None, None))
        k, v = kv[..., 0, :], kv[..., 1, :]
        k = k if self.qk_norm is None else self._normalised(p["k_norm"], k)
        if self.qkv_clip:
            k, v = (jnp.clip(x, -self.qkv_clip, self.qkv_clip) for x in (k, v))
        return k, v
