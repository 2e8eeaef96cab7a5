"""What mixers that attend have in common: keys held in a cache or not, and one softmax over a position's views."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.mask import Mask
from jaxlm.core.types import Context, Params, PositionEncoding, RowBias, Side, TileBias
from jaxlm.ops.attention import attention, merge, with_sinks


class Held(NamedTuple):
    """The keys that queries meet: those of this call, or all that a cache holds.

    Attributes:
      k, v: [B, T, G, K] and [B, T, G, any].
      positions: int32 [B or 1, T].
      segments: int32 [B, L] of the queries and [B, T] of the keys; None for one document per row.
      side: float32 [B, L, S] of the queries and [B, T, S] of the keys; None if the position encoding has none.
      rotated: whether ``k`` is turned by its positions already.
    """

    k: jax.Array
    v: jax.Array
    positions: jax.Array
    segments: tuple[jax.Array, jax.Array] | None
    side: Side | None
    rotated: bool


def own_params(position: PositionEncoding, p: Params, ctx: Context) -> Params:
    """The parameters of a mixer's position encoding, which may live once in the model."""
    if position.scope == "model":
        return ctx.shared[registry.name_of("position", position)]
    return p.get("position", {})


def hold(
    position: PositionEncoding, where: Params, x: jax.Array, k: jax.Array, v: jax.Array, ctx: Context, state: Any
) -> tuple[Held, Any]:
    """The keys [B, L, G, K] and values of the input x [B, L, D], appended to the cache if there is one."""
    shape = k.shape[:2]
    if state is None:
        side = position.side(where, x, ctx.segment_ids, None)
        segments = None if ctx.segment_ids is None else (ctx.segment_ids, ctx.segment_ids)
        return Held(k, v, ctx.positions, segments, None if side is None else (side, side), rotated=False), None
    side = position.side(where, x, ctx.segment_ids, state.last_side)
    seg_q = jnp.ones(shape, jnp.int32) if ctx.segment_ids is None else ctx.segment_ids
    new = position.rotate(where, k, ctx.positions, ctx.length) if state.rotated else k
    state, seen = state.append(new, v, jnp.broadcast_to(ctx.positions, shape), seg_q, side)
    sides = None if side is None else (side, seen.side)
    return Held(seen.k, seen.v, seen.position, (seg_q, seen.segment), sides, state.rotated), state


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
    key_bias: jax.Array | None = None,
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
      key_bias: float32 [B, T], added to the logits of each key.
      own: the keys are those of this call, not of a cache.
      options: of `jaxlm.ops.attention`.

    Returns [B, L, H, any].
    """
    if held.rotated:
        views: list[Any] = [(position.rotate(where, q, ctx.positions, ctx.length), held.k, None)]
    else:
        views = position.views(where, q, held.k, ctx.positions, held.positions, ctx.length)
    biases = [position.bias(where, q, k, ctx.positions, held.positions, held.side) for q, k, _ in views]
    joined = [join(view_q, view_k) for view_q, view_k, _ in views]
    if key_bias is not None:
        joined, biases, options["scale"] = _with_keys(joined, biases, key_bias, options)
    positions = None if own and ctx.slots else (ctx.positions, held.positions)

    def over(qs: Any, ks: Any, values: jax.Array, positions: Any, segments: Any, sinks: Any, biases: Any) -> jax.Array:
        def view(i: int, seen: Mask, **more: Any) -> Any:
            region = views[i][2]
            return attention(
                qs[i],
                ks[i],
                values,
                mask=seen if region is None else seen & region,
                positions=positions,
                segment_ids=segments,
                bias=biases[i],
                ordered=own and ctx.ordered,
                **more,
                **options,
            )

        if len(views) == 1 and not again:
            return view(0, mask, sink_logits=sinks)
        parts = []
        for seen, times in ((mask, 1), *again):
            for i in range(len(views)):
                out, lse = view(i, seen, return_lse=True)
                parts.append((out, lse + math.log(times)))
        out, lse = functools.reduce(lambda a, b: merge(*a, *b), parts)
        return out if sinks is None else with_sinks(out, lse, sinks)[0]

    qs, ks = (tuple(pair[side] for pair in joined) for side in range(2))
    return _apart(over, qs, ks, values, positions, held.segments, sinks, biases)


def _with_keys(
    joined: list[tuple[jax.Array, jax.Array]],
    biases: list[TileBias | RowBias | None],
    key_bias: jax.Array,
    options: dict[str, Any],
) -> tuple[list[tuple[jax.Array, jax.Array]], list[TileBias | RowBias | None], float]:
    """Queries, keys, biases and the scale of attention in which ``key_bias`` [B, T] is added to the logits of each key.

    Where there is no other bias it is a bias by rows. Beside one it is one more channel, 1 of the query times bias /
    scale of the key (and what 16 bits lose of that, in another), so that back ends and the other bias need not know.
    """
    scale = options.get("scale") or joined[0][0].shape[-1] ** -0.5
    if all(bias is None for bias in biases):
        by_head = jnp.broadcast_to(key_bias[:, :, None], (*key_bias.shape, joined[0][0].shape[2]))
        rows = RowBias(queries=(), keys=by_head, heads=(), rule=_of_keys)
        return joined, [rows] * len(biases), scale
    require(not options.get("soft_cap"), "a bias of keys beside one of positions would be within the soft cap")
    wide = (key_bias / scale)[:, :, None, None]
    out = []
    for q, k in joined:
        high = wide.astype(k.dtype)
        parts = [high] if k.dtype == jnp.float32 else [high, (wide - high.astype(jnp.float32)).astype(k.dtype)]
        more = jnp.broadcast_to(jnp.concatenate(parts, -1), (*k.shape[:3], len(parts)))
        ones = jnp.ones((*q.shape[:3], len(parts)), q.dtype)
        out.append((jnp.concatenate([q, ones], -1), jnp.concatenate([k, more], -1)))
    return out, biases, scale


def _of_keys(queries: Any, keys: jax.Array, heads: Any, pos_q: jax.Array, pos_k: jax.Array, seen: jax.Array) -> Any:
    return jnp.broadcast_to(keys.transpose(0, 2, 1)[:, :, None], (*keys.shape[:3:2], *seen.shape[2:]))


def _apart(
    over: Callable[..., jax.Array],
    qs: tuple[jax.Array, ...],
    ks: tuple[jax.Array, ...],
    values: jax.Array,
    positions: tuple[jax.Array, jax.Array] | None,
    segments: tuple[jax.Array, jax.Array] | None,
    sinks: jax.Array | None,
    biases: list[TileBias | RowBias | None],
) -> jax.Array:
    """``over`` with each device of the mesh in use at its own rows and heads, which the compiler cannot do to a kernel.

    Heads are split where key heads are, and biases are none or say what each head needs to know.
    """
    batch = qs[0].shape[0]
    by_head = all(not isinstance(b, TileBias) or b.numbers() is not None or b.of_heads for b in biases)
    heads = "heads" if by_head and dist.divides("heads", values.shape[2]) else None
    row = lambda x: "batch" if x.shape[0] == batch else None
    given: dict[str, tuple[Any, dist.Axes]] = {
        "qs": (qs, ("batch", None, heads)),
        "ks": (ks, ("batch", None, heads)),
        "values": (values, ("batch", None, heads)),
    }
    for name, pair in (("positions", positions), ("segments", segments)):
        for side, x in zip("qk", pair or (), strict=False):
            given[f"{name}_{side}"] = x, (row(x),)
    if sinks is not None:
        given["sinks"] = sinks, (heads,)
    divided = [_divided(bias, heads) for bias in biases]
    for i, (parts, _) in enumerate(divided):
        given |= {f"bias_{i}_{name}": part for name, part in parts.items()}

    def run(*arrays: Any) -> jax.Array:
        named = dict(zip(given, arrays, strict=True))
        pair = lambda name: (named[f"{name}_q"], named[f"{name}_k"]) if f"{name}_q" in named else None
        here = [join({name: named[f"bias_{i}_{name}"] for name in parts}) for i, (parts, join) in enumerate(divided)]
        return over(
            named["qs"], named["ks"], named["values"], pair("positions"), pair("segments"), named.get("sinks"), here
        )

    if not dist.is_active():
        return over(qs, ks, values, positions, segments, sinks, biases)
    return dist.per_device(
        run,
        tuple(x for x, _ in given.values()),
        tuple(axes for _, axes in given.values()),
        ("batch", None, heads, None),
    )


def _divided(
    bias: TileBias | RowBias | None, heads: str | None
) -> tuple[dict[str, tuple[Any, dist.Axes]], Callable[[dict[str, Any]], TileBias | RowBias | None]]:
    """What devices are given of a bias, with its axes, and how each of them makes its own of that."""
    if bias is None:
        return {}, lambda own: None
    if isinstance(bias, RowBias):
        token, fixed = ("batch", None, heads), bias
        parts = {"queries": (bias.queries, token), "keys": (bias.keys, token), "heads": (bias.heads, (heads,))}
        return {n: x for n, x in parts.items() if jax.tree.leaves(x[0])}, lambda own: dataclasses.replace(fixed, **own)
    parts: dict[str, tuple[Any, dist.Axes]]
    whole: Any = bias
    at, trains, numbers = bias.at, bias.trainable, bias.numbers()
    if numbers is not None and heads:
        return {"numbers": (numbers, (heads,))}, lambda own: OwnHeads(own["numbers"], at, trains)
    parts = {"rest": (dataclasses.replace(whole, **dict.fromkeys(bias.of_heads)), ())}
    if bias.of_heads:
        parts["heads"] = {name: getattr(bias, name) for name in bias.of_heads}, (heads,)
    return parts, lambda own: dataclasses.replace(own["rest"], **own.get("heads", {}))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnHeads(TileBias):
    """A bias for some of the heads of another: their numbers [h, n], and its rule."""

    values: jax.Array
    rule: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    trains: bool = dataclasses.field(metadata={"static": True})

    @property
    def trainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.trains

    def numbers(self) -> jax.Array:
        return self.values

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self.rule(numbers, pos_q, pos_k)
