"""What mixers that attend have in common: keys held in a cache or not, and one softmax over a position's views."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import registry
from jaxlm.core.mask import Mask
from jaxlm.core.types import Context, Params, PositionEncoding
from jaxlm.ops.attention import attention, merge, with_sinks


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
    mask: Mask,
    join: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = lambda q, k: (q, k),
    again: tuple[tuple[Mask, int], ...] = (),
    sinks: jax.Array | None = None,
    own: bool,
    **options: Any,
) -> jax.Array:
    """Attention of q [B, L, H, K], not yet rotated, over ``held.k``, merged over the position encoding's views.

    Args:
      position, where: the encoding and its parameters.
      values: [B, T, G, any].
      ctx: positions and declared length.
      mask: which keys a query sees.
      again: masks of keys that count in the softmax once more, or more often: each with how many times. They need not
        be apart from those of ``mask``, nor from each other.
      join: makes of each view's rotated (q, k) what the scores are taken of.
      sinks: float [H], each head's sink logit, which counts once however many views there are.
      own: the keys are those of this call, not of a cache.
      options: of `jaxlm.ops.attention`.

    Returns [B, L, H, any].
    """
    if held.rotated:
        views: list[Any] = [(position.rotate(where, q, ctx.positions, ctx.length), held.k, None)]
    else:
        views = position.views(where, q, held.k, ctx.positions, held.positions, ctx.length)

    def view(mask: Mask, view_q: jax.Array, view_k: jax.Array, region: Mask | None, **more: Any) -> Any:
        return attention(
            *join(view_q, view_k),
            values,
            mask=mask if region is None else mask & region,
            positions=None if own and ctx.slots else (ctx.positions, held.positions),
            segment_ids=held.segments,
            bias=position.bias(where, view_q, view_k, ctx.positions, held.positions),
            ordered=own and ctx.ordered,
            **more,
            **options,
        )

    if len(views) == 1 and not again:
        return view(mask, *views[0], sink_logits=sinks)
    parts = []
    for seen, times in ((mask, 1), *again):
        for each in views:
            out, lse = view(seen, *each, return_lse=True)
            parts.append((out, lse + math.log(times)))
    out, lse = functools.reduce(lambda a, b: merge(*a, *b), parts)
    return out if sinks is None else with_sinks(out, lse, sinks)[0]
