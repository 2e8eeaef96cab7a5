"""Short causal convolution, channel by channel, over the real tokens of each document, in whole rows and in pieces."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Tail(NamedTuple):
    """The last taps - 1 real tokens of a row, oldest first.

    Attributes:
      values: [B, taps - 1, ...], zeros before the first token.
      segments: int32 [B, taps - 1], 0 where there was none.
    """

    values: jax.Array
    segments: jax.Array


def empty_tail(batch: int, taps: int, channels: tuple[int, ...], dtype: jnp.dtype) -> Tail:
    """The tail of a row that has not begun."""
    return Tail(jnp.zeros((batch, taps - 1, *channels), dtype), jnp.zeros((batch, taps - 1), jnp.int32))


def causal_conv(
    x: jax.Array, taps: jax.Array, segment_ids: jax.Array | None = None, tail: Tail | None = None
) -> tuple[jax.Array, Tail]:
    """y_i = sum_t taps[t] x_{i-t}, where i - t counts the real tokens of i's own document.

    Args:
      x: [B, L, ...].
      taps: [n, ...], the current token's first.
      segment_ids: int32 [B, L], 0 for padding, which is skipped; None for one document per row.
      tail: of the tokens that x continues; None for none.

    Returns:
      y [B, L, ...], arbitrary on padding, and the tail after these tokens.
    """
    count, (batch, length) = taps.shape[0], x.shape[:2]
    taps = taps.astype(x.dtype)
    if tail is None:
        tail = empty_tail(batch, count, x.shape[2:], x.dtype)
        if segment_ids is None:  # slots are tokens
            longer = jnp.concatenate((tail.values, x), 1)
            y = sum(taps[t] * longer[:, count - 1 - t : count - 1 - t + length] for t in range(count))
            marks = jnp.concatenate((tail.segments, jnp.ones((batch, length), jnp.int32)), 1)
            return jnp.asarray(y), Tail(longer[:, length:], marks[:, length:])
    segments = jnp.ones((batch, length), jnp.int32) if segment_ids is None else segment_ids
    if length == 1:
        return _one_token(x, taps, segments, tail)
    marks = jnp.concatenate((tail.segments, segments), 1)
    real = marks != 0
    order = jnp.argsort(~real, axis=1, stable=True)  # real tokens in front
    in_order = lambda a: jnp.take_along_axis(a, order.reshape(*order.shape, *(1,) * (a.ndim - 2)), 1)
    values, owners = in_order(jnp.concatenate((tail.values, x), 1)), in_order(marks)

    def at(rank: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The real tokens of those ranks [B, any], and their segments, 0 where the row had not begun."""
        index = jnp.maximum(rank, 0)
        found = jnp.take_along_axis(values, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), 1)
        return found, jnp.where(rank >= 0, jnp.take_along_axis(owners, index, 1), 0)

    rank = (jnp.cumsum(real, 1) - 1)[:, count - 1 :]
    y = taps[0] * x
    for t in range(1, count):
        value, owner = at(rank - t)
        same = (owner == segments).reshape(*owner.shape, *(1,) * (x.ndim - 2))
        y = y + taps[t] * jnp.where(same, value, 0)
    value, owner = at(real.sum(1, keepdims=True) - count + 1 + jnp.arange(count - 1))
    return y, Tail(jnp.where((owner != 0).reshape(*owner.shape, *(1,) * (x.ndim - 2)), value, 0), owner)


def _one_token(x: jax.Array, taps: jax.Array, segments: jax.Array, tail: Tail) -> tuple[jax.Array, Tail]:
    """`causal_conv` of a single slot: the tail is in order already, so nothing needs to be sorted."""
    wide = lambda mark: mark.reshape(*mark.shape, *(1,) * (x.ndim - 2))
    earlier = jnp.where(wide(tail.segments == segments), tail.values, 0)
    y = taps[0] * x + (taps[:0:-1] * earlier).sum(1, keepdims=True)
    moved = Tail(*(jnp.concatenate((old[:, 1:], new), 1) for old, new in zip(tail, (x, segments), strict=True)))
    real = segments != 0
    return y, Tail(jnp.where(wide(real), moved.values, tail.values), jnp.where(real, moved.segments, tail.segments))
