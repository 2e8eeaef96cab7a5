"""The three poolings of PoNet, in its published form, which sees a whole document, and in one that runs along a row.

    out_t = (global + segment_t) o_t + local_t
    whole:    global = sum_s softmax_s(mean(q) . k_s / sqrt(K)) k_s; segment_t the maximum over t's segment; local_t
              that of the tokens around t
    running:  the score of a key is taken with the mean of q up to it, once, so that the softmax can be carried along;
              segment_t is the maximum over the last segment that is complete, 0 for none; local_t that of t and the
              tokens before it

All arrays are [B, L, H, K] and float32 inside; the mean, the softmax, segments and windows count the real tokens of a
document (Tan et al. 2022, PoNet: Pooling Network for Efficient Token Mixing in Long Sequences).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.ops.segments import Rows, running_sum

LOW = -1e30  # below every number, and finite: differences of two of these are 0


class Running(NamedTuple):
    """What the running global pooling carries, float32: tokens so far [B], the sum of q [B, H, K], and the softmax as
    a greatest score [B, H], a sum of weights [B, H] and of weighted keys [B, H, K] relative to it."""

    count: jax.Array
    total: jax.Array
    top: jax.Array
    weight: jax.Array
    keys: jax.Array


def _marks(rows: Rows | None, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """real, epoch, and where documents begin after others: all [B, L]."""
    if rows is None:
        return jnp.ones(shape, bool), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    return rows.real, rows.epoch, jnp.diff(rows.epoch, axis=1, prepend=0) > 0


def _wide(mark: jax.Array, like: jax.Array) -> jax.Array:
    return mark.reshape(*mark.shape, *(1,) * (like.ndim - mark.ndim))


def whole_global(q: jax.Array, k: jax.Array, rows: Rows | None = None) -> jax.Array:
    """[B, L, H, K]: of each token's document, the keys weighted by how they fit the mean query."""
    real, epoch, _ = _marks(rows, q.shape[:2])
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    count = 1 if rows is None else q.shape[1]
    added = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, count))
    each = lambda x: jnp.take_along_axis(x, _wide(epoch, x), 1)  # what is of documents, for each token
    number = added(real.astype(jnp.float32), epoch)
    mean = added(jnp.where(_wide(real, q), q, 0), epoch) / jnp.maximum(number, 1)[..., None, None]
    scores = (each(mean) * k).sum(-1) * k.shape[-1] ** -0.5
    scores = jnp.where(real[..., None], scores, LOW)
    top = jax.vmap(lambda x, ids: jax.ops.segment_max(x, ids, count))(jax.lax.stop_gradient(scores), epoch)
    weights = jnp.where(real[..., None], jnp.exp(scores - each(top)), 0)
    sums = added(weights[..., None] * k, epoch) / jnp.maximum(added(weights, epoch), 1e-30)[..., None]
    return each(sums)


def whole_segments(x: jax.Array, length: int, rows: Rows | None = None) -> jax.Array:
    """[B, L, H, K]: the maximum over each token's segment, of ``length`` tokens counted from its document's start."""
    real, _, starts = _marks(rows, x.shape[:2])
    x = jnp.where(_wide(real, x), x.astype(jnp.float32), LOW)
    rank = running_sum(real.astype(jnp.float32)[..., None], starts, jnp.zeros((x.shape[0], 1)))[..., 0] - 1
    ids = jnp.cumsum(real & (rank % length == 0), 1) - 1  # of a row's segments; -1 on padding before the first
    top = jax.vmap(lambda x, ids: jax.ops.segment_max(x, ids, x.shape[0]))(x, jnp.maximum(ids, 0))
    return jnp.take_along_axis(top, _wide(jnp.maximum(ids, 0), top), 1)


def whole_local(x: jax.Array, window: int, rows: Rows | None = None) -> jax.Array:
    """[B, L, H, K]: the maximum over the ``window`` tokens around each one, an odd number of them, itself included."""
    real, epoch, _ = _marks(rows, x.shape[:2])
    x, length = x.astype(jnp.float32), x.shape[1]
    order = jnp.argsort(~real, axis=1, stable=True)
    rank, total = jnp.cumsum(real, 1) - 1, real.sum(1, keepdims=True)
    top = x
    for shift in (s for d in range(1, window // 2 + 1) for s in (d, -d)):
        there = rank + shift
        at = jnp.take_along_axis(order, jnp.clip(there, 0, length - 1), 1)
        same = (there >= 0) & (there < total) & (jnp.take_along_axis(epoch, at, 1) == epoch)
        top = jnp.maximum(top, jnp.where(_wide(same, x), jnp.take_along_axis(x, _wide(at, x), 1), LOW))
    return top


def running_global(
    q: jax.Array, k: jax.Array, before: Running, rows: Rows | None = None
) -> tuple[jax.Array, jax.Array, Running]:
    """[B, L, H, K], the keys up to each token weighted by how each fitted the mean query of its time; float32 [B, L],
    how many tokens of the document there are up to each one; and what is carried on."""
    real, _, starts = _marks(rows, q.shape[:2])
    q, k = (jnp.where(_wide(real, a), a.astype(jnp.float32), 0) for a in (q, k))
    count = running_sum(real.astype(jnp.float32)[..., None], starts, before.count[:, None])
    flat = lambda a: a.reshape(*a.shape[:-2], -1)
    total = running_sum(flat(q), starts, flat(before.total)).reshape(q.shape)
    mean = total / jnp.maximum(count, 1)[..., None]
    scores = jnp.where(real[..., None], (mean * k).sum(-1) * k.shape[-1] ** -0.5, LOW)
    weight = jnp.broadcast_to(real[..., None], scores.shape).astype(jnp.float32)

    def add(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Of two softmaxes (top, weight, keys): that over both. The top is a mere scale, and so has no gradient."""
        top = jax.lax.stop_gradient(jnp.maximum(a[0], b[0]))
        one, two = jnp.exp(a[0] - top), jnp.exp(b[0] - top)
        return top, one * a[1] + two * b[1], one[..., None] * a[2] + two[..., None] * b[2]

    def join(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        both = add(a, b)
        return *(jnp.where(_wide(b[3], x), y, x) for x, y in zip(both, b[:3], strict=True)), a[3] | b[3]

    *sums, anew = jax.lax.associative_scan(join, (scores, weight, k, starts), axis=1)
    joined = add((before.top[:, None], before.weight[:, None], before.keys[:, None]), tuple(sums))
    top, weight, keys = (jnp.where(_wide(anew, a), a, b) for a, b in zip(sums, joined, strict=True))
    out = keys / jnp.maximum(weight, 1e-30)[..., None]
    last = Running(count[:, -1, 0], total[:, -1], top[:, -1], weight[:, -1], keys[:, -1])
    return out, count[..., 0], last


def running_segments(
    x: jax.Array, length: int, count: jax.Array, before: jax.Array, rows: Rows | None = None
) -> tuple[jax.Array, jax.Array]:
    """[B, L, H, K], the maximum over the last complete segment of ``length`` tokens, 0 for none; what is carried on.

    ``count`` [B, L] is of `running_global`; ``before`` float32 [B, 2, H, K] that maximum, and the one of the segment
    that is not complete yet.
    """
    real, _, starts = _marks(rows, x.shape[:2])
    x = jnp.where(_wide(real, x), x.astype(jnp.float32), LOW)
    begins = real & ((jnp.floor(count) - 1) % length == 0)

    def along(combine, x: jax.Array, flags: jax.Array, first: jax.Array) -> jax.Array:
        """Runs of ``combine``, each begun by a flag, the first of them continuing ``first``."""

        def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return jnp.where(_wide(b[1], b[0]), b[0], combine(a[0], b[0])), a[1] | b[1]

        found, anew = jax.lax.associative_scan(join, (x, flags), axis=1)
        return jnp.where(_wide(anew, found), found, combine(first[:, None], found))

    within = along(jnp.maximum, x, begins, before[:, 1])
    completed = jnp.concatenate((before[:, 1:], within[:, :-1]), 1)  # if a segment begins here
    completed = jnp.where(_wide(starts, x), 0, completed)
    done = along(lambda a, b: jnp.broadcast_to(a, b.shape), completed, begins, before[:, 0])
    return done, jnp.stack((done[:, -1], within[:, -1]), 1)
