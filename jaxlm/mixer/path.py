"""PaTH attention: positions are products of Householder-like turns that the tokens between query and key decide on.

    logit_ij = q_i^T H_i H_{i-1} ... H_{j+1} k_j / sqrt(K),   H_s = I - beta_s w_s w_s^T

w_s = unit(silu(conv(x W)))_s after a causal convolution over a few tokens, beta_s = 2 sigmoid(x_s . b + c) in (0, 2). A
state keeps each key as all later tokens have turned it, so that a step turns every cached key once. The turns count
tokens, not positions: padding turns nothing, and documents of a packed row do not meet. The forget gate of FoX (Lin et
al. 2025) may be added, sum_{t=j+1..i} ln sigmoid(x_t . f + d).

Learned: the projections of `jaxlm.mixer.heads`, those of w, beta and the gate, and the convolution. Claimed: state
tracking that rotary cannot express, and better length extrapolation, with the gate above all (Yang et al. 2025).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.cache.full import Full
from jaxlm.core import registry
from jaxlm.core.config import require, slot
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.mixer.attend import own_params
from jaxlm.mixer.heads import Heads
from jaxlm.ops.causal_conv import Tail, causal_conv, empty_tail
from jaxlm.ops.dense import dense
from jaxlm.ops.path import Keys, Logits, Turns, path_attention, reference
from jaxlm.ops.segments import last_segment, previous_segment, running_sum

GATES = ("none", "logits", "products")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PathState:
    """State of one layer.

    Attributes:
      keys: of every token so far, each as turned by all later ones; float32, since it is rounded at each step.
      tail: of the convolution.
      segment: int32 [B], that of the last real token. sums: float32 [B, H], its sums of gates.
      cursor: int32 scalar, the next slot to write; beyond T the state has overflowed.
    """

    keys: Keys
    tail: Tail
    segment: jax.Array
    sums: jax.Array | None
    cursor: jax.Array

    @property
    def overflowed(self) -> jax.Array:
        """Boolean scalar: more tokens were written than there are slots."""
        return self.cursor > self.keys.k.shape[1]

    def grow(self, capacity: int) -> PathState:
        """The same state with empty slots added, for ``capacity`` tokens in all."""
        more = capacity - self.keys.k.shape[1]
        pad = lambda x: jnp.pad(x, [(0, more if i == 1 else 0) for i in range(x.ndim)])
        return dataclasses.replace(self, keys=jax.tree.map(pad, self.keys))


@dataclasses.dataclass(frozen=True)
class Path(Heads):
    """PaTH attention.

    Attributes:
      heads, kv_heads, head_dim, scale, soft_cap, qk_norm, ...: of `Heads`; each key/value head has its own turns.
      position: an encoding that embeds (learned, abacus), or none; one that acts on queries and keys is refused.
      conv: tokens that the convolution of w reads; 1 for no convolution.
      rank: of the projection to w (the authors': 32 where every head has its own key); 0 for a full one.
      gate: a forget gate added to the ``"logits"``, as in FoX; to the ``"products"`` before their scale, as the
        authors' naive reference does; or ``"none"``.
      block: tokens whose turns are multiplied at once.
      implementation: ``"auto"``, ``"xla"`` (by blocks) or ``"reference"`` (token by token).
    """

    paper: ClassVar[str] = "Yang et al. 2025, PaTH Attention: Position Encoding via Accumulating Householder Transforms"
    streaming: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    position: Any = slot("position", "none")
    conv: int = 3
    rank: int = 32
    gate: str = "none"
    block: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        super().check()
        require(self.conv > 0, f"Path.conv: expected a number of tokens, 1 for no convolution, got {self.conv}")
        require(self.rank >= 0, f"Path.rank: expected an integer >= 0, got {self.rank}")
        require(self.block > 0, f"Path.block: expected a positive integer, got {self.block}")
        require(not self.qk_norm_rotated, "Path.qk_norm_rotated: keys are turned anew by every token; norm them before")
        choose("Path.gate", self.gate, GATES)
        choose("Path.implementation", self.implementation, ("auto", "xla", "reference"))

    def params(self, dims: Dims) -> Specs:
        specs, own = super().params(dims), self.dims(dims)
        groups, width, model = self.groups, own.head_dim, dims.width
        if self.rank:
            specs["w_down"] = ParamSpec((model, self.rank), ("embed", None))
        specs["w"] = ParamSpec((self.rank or model, groups, width), (None if self.rank else "embed", "heads", None))
        if self.conv > 1:
            specs["conv"] = ParamSpec((self.conv, groups, width), (None, "heads", None))
        specs["beta"] = ParamSpec((model, groups), ("embed", "heads"))
        specs["beta_bias"] = ParamSpec((groups,), ("heads",), zeros, decay=False)
        if self.gate != "none":
            specs["gate"] = ParamSpec((model, self.heads), ("embed", "heads"))
            specs["gate_bias"] = ParamSpec((self.heads,), ("heads",), zeros, decay=False)
        return specs

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> PathState:
        """An empty state for ``max_length`` tokens. Raises `ConfigError` for another policy than ``full``."""
        require(
            isinstance(cache, Full),
            f"mixer 'path' turns every key at every step and keeps them in cache 'full', "
            f"not {registry.name_of('cache', cache)!r}",
        )
        groups, width = self.groups, self.dims(dims).head_dim
        gated = self.gate != "none"
        keys = Keys(
            k=jnp.zeros((batch, max_length, groups, width), jnp.float32),
            v=jnp.zeros((batch, max_length, groups, width), dtype),
            segment=jnp.zeros((batch, max_length), jnp.int32),
            sums=jnp.zeros((batch, max_length, self.heads), jnp.float32) if gated else None,
        )
        return PathState(
            keys,
            tail=empty_tail(batch, self.conv, (groups, width), jnp.dtype(jnp.float32)),
            segment=jnp.zeros((batch,), jnp.int32),
            sums=jnp.zeros((batch, self.heads), jnp.float32) if gated else None,
            cursor=jnp.int32(0),
        )

    def flops(self, dims: Dims, length: int) -> float:
        """Scores and weighted sum over the keys a token sees, and a query's way back through their blocks."""
        own = self.dims(dims)
        keys = (length + 1) / 2
        return own.heads * own.head_dim * (4.0 * keys + 4.0 * keys)

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: PathState | None = None
    ) -> tuple[jax.Array, PathState | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue what it holds.

        Rows whose state has overflowed read NaN.
        """
        q, k, v = self.project(p, x_BLD)
        self._check_position(p, q, k, ctx)
        segments = jnp.ones(q.shape[:2], jnp.int32) if ctx.segment_ids is None else ctx.segment_ids
        turns, tail = self._turns(p, x_BLD, ctx.segment_ids, None if state is None else state.tail)
        sums = self._gates(p, x_BLD, segments, state)
        new = Keys(k, v, segments, sums)
        logits = Logits(self.scale or q.shape[-1] ** -0.5, self.soft_cap, gate_first=self.gate == "products")
        past = None if state is None else state.keys
        if self.implementation == "reference":
            out, own, old = reference(q, new, turns, logits, past)
        else:
            out, own, old = path_attention(q, new, turns, logits, past, block=self.block)
        if state is not None and old is not None and tail is not None:
            at = state.cursor
            put = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), at, 1)
            keys = jax.tree.map(put, state.keys._replace(k=old), new._replace(k=own))
            state = PathState(
                keys,
                tail,
                segment=last_segment(segments, state.segment),
                sums=None if sums is None else sums[:, -1],
                cursor=at + q.shape[1],
            )
            out = jnp.where(state.overflowed, jnp.nan, out)
        return self.unproject(p, out), state

    def _turns(
        self, p: Params, x: jax.Array, segment_ids: jax.Array | None, tail: Tail | None
    ) -> tuple[Turns, Tail | None]:
        """w and beta of each token, float32, and what the convolution keeps."""
        w = dense(dense(x, p["w_down"]), p["w"]) if self.rank else dense(x, p["w"])
        w = dist.constrain(w, ("batch", None, "heads", None)).astype(jnp.float32)
        if self.conv > 1:
            w, tail = causal_conv(w, p["conv"], segment_ids, tail)
            w = jax.nn.silu(w)
        w = w * jax.lax.rsqrt(jnp.square(w).sum(-1, keepdims=True) + 1e-6)
        beta = dense(x, p["beta"]).astype(jnp.float32) + p["beta_bias"].astype(jnp.float32)
        return Turns(w, 2 * jax.nn.sigmoid(beta)), tail

    def _gates(self, p: Params, x: jax.Array, segments: jax.Array, state: PathState | None) -> jax.Array | None:
        """Running sums [B, L, H] of the gates' logarithms, anew in each document; padding repeats the last."""
        if self.gate == "none":
            return None
        steps = dense(x, p["gate"]).astype(jnp.float32) + p["gate_bias"].astype(jnp.float32)
        real = segments != 0
        steps = jnp.where(real[..., None], jax.nn.log_sigmoid(steps), 0.0)
        before = jnp.zeros_like(steps[:, 0]) if state is None or state.sums is None else state.sums
        last = jnp.zeros_like(segments[:, 0]) if state is None else state.segment
        return running_sum(steps, real & (segments != previous_segment(segments, last)), before)

    def _check_position(self, p: Params, q: jax.Array, k: jax.Array, ctx: Context) -> None:
        """Raises `ConfigError` for an encoding that does more than embed."""
        where, at = own_params(self.position, p, ctx), (ctx.positions, ctx.positions)
        views = self.position.views(where, q, k, *at, ctx.length)
        plain = len(views) == 1 and views[0][0] is q and views[0][1] is k and views[0][2] is None
        require(
            plain and self.position.bias(where, q, k, *at) is None,
            f"mixer 'path' takes position encodings that embed; "
            f"{registry.name_of('position', self.position)!r} acts on queries and keys",
        )
