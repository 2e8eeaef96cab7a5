"""What mixers that attend have in common: keys held in a cache or not, and one softmax over a position's views."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.attention.mask import Both
from jaxlm.core import registry
from jaxlm.core.types import Context, Params, PositionEncoding
from jaxlm.ops.attention import attention, merge


class Held(NamedTuple):
    """The keys that queries meet: those of this call, or all that a cache holds.

    Attributes:
      k, v: [B, T, G, K] and [B, T, G, any].
      positions: int32 [B or 1, T].
      segments: int32 [B, L] of the queries and [B, T] of the keys; None for one document per row.
      rotated: whether ``k`` is turned by its positions already.
    """

    k: jax.Array
    v: jax.Array
    positions: jax.Array
    segments: tuple[jax.Array, jax.Array] | None
    rotated: bool


def own_params(position: PositionEncoding, p: Params, ctx: Context) -> Params:
    """The parameters of a mixer's position encoding, which may live once in the model."""
    if position.scope == "model":
        return ctx.shared[registry.name_of("position", position)]
    return p.get("position", {})


def hold(
    position: PositionEncoding, where: Params, k: jax.Array, v: jax.Array, ctx: Context, state: Any
) -> tuple[Held, Any]:
    """The keys [B, L, G, K] and values of this call, appended to the cache if there is one; and its new state."""
    if state is None:
        segments = None if ctx.segment_ids is None else (ctx.segment_ids, ctx.segment_ids)
        return Held(k, v, ctx.positions, segments, rotated=False), None
    shape = k.shape[:2]
    seg_q = jnp.ones(shape, jnp.int32) if ctx.segment_ids is None else ctx.segment_ids
    new = position.rotate(where, k, ctx.positions, ctx.length) if state.rotated else k
    state = state.append(new, v, jnp.broadcast_to(ctx.positions, shape), seg_q)
    k, v, pos_k, seg_k = state.view()
    return Held(k, v, pos_k, (seg_q, seg_k), state.rotated), state


def attend(
    position: PositionEncoding,
    where: Params,
    q: jax.Array,
    held: Held,
    values: jax.Array,
    ctx: Context,
    *,
    mask: Any,
    join: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = lambda q, k: (q, k),
    ordered: bool,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """Attention of q [B, L, H, K], not yet rotated, over ``held.k``, merged over the position encoding's views.

    Args:
      position, where: the encoding and its parameters.
      values: [B, T, G, any].
      ctx: positions and declared length.
      mask: which keys a query sees.
      join: makes of each view's rotated (q, k) what the scores are taken of.
      ordered, options: of `jaxlm.ops.attention`.

    Returns the output [B, L, H, any] and the log-sum-exp, float32 [B, H, L].
    """
    if held.rotated:
        views: list[Any] = [(position.rotate(where, q, ctx.positions, ctx.length), held.k, None)]
    else:
        views = position.views(where, q, held.k, ctx.positions, held.positions, ctx.length)
    parts: list[Any] = [
        attention(
            *join(view_q, view_k),
            values,
            mask=mask if region is None else Both(mask, region),
            positions=(ctx.positions, held.positions),
            segment_ids=held.segments,
            bias=position.bias(where, view_q, view_k, ctx.positions, held.positions),
            ordered=ordered,
            return_lse=True,
            **options,
        )
        for view_q, view_k, region in views
    ]
    return functools.reduce(lambda a, b: merge(*a, *b), parts)
