"""Landmark attention (Mohtashami and Jaggi 2023, Landmark Attention: Random-Access Infinite Context Length).

Every ``period``-th token of a row is a landmark: its key stands for the block that it ends. A query's softmax runs over
the tokens of its own block and the landmarks of earlier blocks, and each earlier block shares its landmark's weight
among its tokens by a softmax of its own. So a landmark's score says what its block is worth to a query, and at
inference a query may read its own block and the few whose landmarks score highest (`jaxlm.cache.landmark`), however
many there are.

Learned: the projections of `jaxlm.mixer.heads`. Claimed: contexts far beyond those of training, and exact retrieval
from them. A model usually inserts the landmarks as tokens of their own (`jaxlm.edit.landmark`, with the same period);
without that, ordinary tokens serve. Blocks are counted over the tokens of a row that are not padding, whatever its
documents: where a document begins within a block, its first block is short.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.cache.full import Full
from jaxlm.cache.landmark import Landmark, LandmarkCache
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.types import Context, Dims, Params
from jaxlm.mixer.attend import own_params
from jaxlm.mixer.heads import Heads
from jaxlm.ops.landmark import IMPLEMENTATIONS, landmark_attention
from jaxlm.ops.landmark_retrieval import Memory, Queries, retrieved_attention


@dataclasses.dataclass(frozen=True)
class LandmarkAttention(Heads):
    """Attention whose distant blocks are reached through landmarks.

    Attributes:
      heads, kv_heads, head_dim, position, scale, soft_cap, qk_norm, ...: of `Heads`. The position encoding may
        embed or rotate; one that adds a bias, or looks twice, is refused.
      period: tokens of a block, its landmark included.
      implementation: a back end of `jaxlm.ops.landmark`, or ``"auto"``.
    """

    paper: ClassVar[str] = "Mohtashami and Jaggi 2023, Landmark Attention: Random-Access Infinite Context Length"
    streaming: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    padding_takes_room: ClassVar[bool] = False

    period: int = 64
    implementation: str = "auto"

    def check(self) -> None:
        super().check()
        require(self.period >= 2, f"LandmarkAttention.period: expected 2 or more, got {self.period}")
        choose("LandmarkAttention.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> LandmarkCache:
        """An empty memory for ``max_length`` tokens; all of it is read under the policy ``full``.

        Raises `ConfigError` for other policies than ``full`` and ``landmark``.
        """
        require(
            isinstance(cache, (Full, Landmark)),
            f"mixer 'landmark' keeps its keys in cache 'full' or 'landmark', not {registry.name_of('cache', cache)!r}",
        )
        turned = self.position.pre_rotate
        if isinstance(cache, Full):
            cache, turned = Landmark(blocks=0, chunk=cache.chunk), turned and cache.rotated
        return cache.init(
            batch, max_length, self.groups, self.dims(dims).head_dim, dtype, pre_rotate=turned, period=self.period
        )

    def flops(self, dims: Dims, length: int) -> float:
        """Scores and weighted sum over the keys a token sees in training: 4 H K per key."""
        own = self.dims(dims)
        return 2.0 * own.heads * own.head_dim * (length + 1)

    def __call__(
        self, p: Params, x_BLD: jax.Array, ctx: Context, state: LandmarkCache | None = None
    ) -> tuple[jax.Array, LandmarkCache | None]:
        """[B, L, D] -> [B, L, D]; with a state, the L tokens continue what the memory holds.

        Rows whose memory has overflowed read NaN.
        """
        q, k, v = self.project(p, x_BLD)
        where = own_params(self.position, p, ctx)
        self._check_position(where, q, k, ctx)
        if state is None:
            out = self._over_all(p, where, q, k, v, ctx)
        else:
            shape = q.shape[:2]
            segments = jnp.ones(shape, jnp.int32) if ctx.segment_ids is None else ctx.segment_ids
            positions = jnp.broadcast_to(ctx.positions, shape)
            new = self.position.rotate(where, k, ctx.positions, ctx.length) if state.rotated else k
            state, slots = state.append(new, v, positions, segments)
            read = self._read if state.policy.blocks else self._read_all
            out = read(p, where, Queries(q, slots, positions, segments), ctx, state)
            out = jnp.where(state.overflowed[:, None, None, None], jnp.nan, out)
        return self.unproject(p, out), state

    def _over_all(self, p: Params, where: Params, q: jax.Array, k: jax.Array, v: jax.Array, ctx: Context) -> jax.Array:
        """The full pass."""
        q, k = self._turned(p, where, q, k, ctx.positions, ctx.positions, ctx)
        slots, segments = None, None
        if ctx.segment_ids is not None:
            real = ctx.segment_ids != 0
            slots = jnp.cumsum(real, 1, dtype=jnp.int32) - real
            k, v, seg_k = _close_up(real, (k, v, ctx.segment_ids))
            segments = ctx.segment_ids, seg_k
        return self._attend(q, k, v, slots=slots, segment_ids=segments)

    def _read_all(self, p: Params, where: Params, queries: Queries, ctx: Context, state: LandmarkCache) -> jax.Array:
        """Over the whole memory."""
        k, v, pos_k, seg_k = state.view()
        if state.rotated:
            q, k = self.scored(p, self.position.rotate(where, queries.q, queries.positions, ctx.length), k)
        else:
            q, k = self._turned(p, where, queries.q, k, queries.positions, pos_k, ctx)
        return self._attend(q, k, v, slots=queries.slots, segment_ids=(queries.segments, seg_k))

    def _read(self, p: Params, where: Params, queries: Queries, ctx: Context, state: LandmarkCache) -> jax.Array:
        """Over the own block and the best of the others."""
        require(
            not self.position.by_length or ctx.length is not None,
            "cache 'landmark' moves keys, so a position encoding that follows the length needs length= declared",
        )

        def rotate(side: int, x: jax.Array, positions: jax.Array) -> jax.Array:
            turned = self.position.rotate(where, x, positions, ctx.length)
            return self.scored(p, turned, turned)[side] if self.qk_norm_rotated else turned

        assert state.marks is not None
        in_blocks = lambda x: x.reshape(x.shape[0], -1, self.period)
        return retrieved_attention(
            queries,
            Memory(state.marks, in_blocks(state.position), in_blocks(state.segment), state.fetch),
            blocks=state.policy.blocks,
            stingy=state.policy.positions == "stingy",
            rotate_q=functools.partial(rotate, 0),
            rotate_k=functools.partial(rotate, 1),
            scale=self.scale or queries.q.shape[-1] ** -0.5,
            soft_cap=self.soft_cap,
        )

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, **where: Any) -> jax.Array:
        found = landmark_attention(
            q,
            k,
            v,
            period=self.period,
            scale=self.scale or None,
            soft_cap=self.soft_cap,
            implementation=None if self.implementation == "auto" else self.implementation,
            **where,
        )
        assert isinstance(found, jax.Array)
        return found

    def _turned(
        self, p: Params, where: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, ctx: Context
    ) -> tuple[jax.Array, jax.Array]:
        """Queries and keys as they are multiplied."""
        ((q, k, _),) = self.position.views(where, q, k, pos_q, pos_k, ctx.length)
        return self.scored(p, q, k)

    def _check_position(self, where: Params, q: jax.Array, k: jax.Array, ctx: Context) -> None:
        """Raises `ConfigError` for an encoding that does more than embed and rotate."""
        at = ctx.positions, ctx.positions
        views = self.position.views(where, q, k, *at, ctx.length)
        require(
            len(views) == 1 and views[0][2] is None and self.position.bias(where, q, k, *at) is None,
            f"mixer 'landmark' takes position encodings that embed or rotate; "
            f"{registry.name_of('position', self.position)!r} adds a bias or takes several views",
        )


def _close_up(real: jax.Array, arrays: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Arrays [B, L, ...] with each row's real tokens in front, in their order; free where they are there already."""
    order = jnp.argsort(~real, axis=1, stable=True)

    def take(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), 1) for x in arrays)

    return jax.lax.cond((real[:, 1:] <= real[:, :-1]).all(), lambda arrays: arrays, take, arrays)
