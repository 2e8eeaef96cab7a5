"""The recurrence of Mamba-3: a trapezoid, so that each token is added twice, at its own time and at the next.

    theta_t = theta_{t-1} + pi tanh(angle_t) dt_t          q_t, k_t turned by theta_t
    S_t = e^{g_t} S_{t-1} + (1 - l_t) dt_t e^{g_t} k_{t-1} v_{t-1}^T + l_t dt_t k_t v_t^T,     l = sigmoid(trapezoid)
    o_t = q_t^T S_t

What token i adds at time i + 1 fades as what it adds at time i does, e^{g} and all. So a reader t > i sees it once, by
the weight l_i dt_i + (1 - l_{i+1}) dt_{i+1}, and t = i alone sees l_i dt_i. Each token therefore hands what it is to
the next one, which adds it with both weights: one `jaxlm.ops.scalar_decay` of the tokens before, and q_t^T k_t v_t for
the token itself, are the whole recurrence, exactly and without a look ahead.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose
from jaxlm.ops.scalar_decay import scalar_decay
from jaxlm.ops.segments import Rows, running_sum

IMPLEMENTATIONS = ("xla", "reference")


class Memory(NamedTuple):
    """What is carried along a row, float32.

    Attributes:
      angle: [B, H, A], theta, from 0 to 2 pi.
      state: [B, H, K, V].
      k, v: [B, H, K], turned, and [B, H, V], of the last token.
    """

    angle: jax.Array
    state: jax.Array
    k: jax.Array
    v: jax.Array


def mamba3(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    dt: jax.Array,
    trapezoid: jax.Array,
    angles: jax.Array,
    *,
    rows: Rows | None = None,
    memory: Memory | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, Memory]:
    """Outputs of L tokens and what is remembered after them.

    Args:
      q, k: [B, L, H, K], not yet turned, not scaled.
      v: [B, L, H, V].
      log_decay: float32 [B, L, H], g <= 0. dt: float32 [B, L, H], > 0.
      trapezoid: [B, L, H], before the sigmoid.
      angles: [B, L, H, A], before the tanh: neighbouring channels of the first 2 A of K turn together.
      rows: padding and documents; None for neither.
      memory: before these tokens; None for zeros.
      chunk: of `jaxlm.ops.scalar_decay`.
      implementation: ``"xla"`` (by chunks), ``"reference"`` (token by token); None for the fastest that serves.

    Returns:
      [B, L, H, V] in float32, arbitrary on padding, and the memory.
    """
    choose("mamba3: implementation", implementation or "xla", IMPLEMENTATIONS)
    kind = jnp.promote_types(q.dtype, jnp.float32)
    (batch, length, heads, width), depth = q.shape, v.shape[-1]
    if memory is None:
        zeros = lambda *shape: jnp.zeros((batch, heads, *shape), kind)
        memory = Memory(zeros(angles.shape[-1]), zeros(width, depth), zeros(width), zeros(depth))
    real = jnp.ones((batch, length), bool) if rows is None else rows.real
    starts = jnp.zeros((batch, length), bool) if rows is None else jnp.diff(rows.epoch, axis=1, prepend=0) > 0
    dt, log_decay = (jnp.where(real[..., None], a.astype(kind), 0) for a in (dt, log_decay))
    steps = jnp.pi * jnp.tanh(angles.astype(kind)) * dt[..., None]
    flat = lambda a: a.reshape(*a.shape[:-2], -1)
    theta = jnp.mod(running_sum(flat(steps), starts, flat(memory.angle.astype(kind))), 2 * jnp.pi)
    theta = theta.reshape(steps.shape)
    q, k, v = turn(q.astype(kind), theta), turn(k.astype(kind), theta), v.astype(kind)
    own = jax.nn.sigmoid(trapezoid.astype(kind))
    run = _token_by_token if implementation == "reference" else _by_chunks
    out, state = run(q, k, v, log_decay, own * dt, (1 - own) * dt, rows, real, starts, memory, chunk)
    last = _latest(real)  # of each row's real tokens; -1 for none
    of_last = lambda a, before: jnp.where(
        (last >= 0).reshape(-1, *(1,) * (before.ndim - 1)),
        jnp.take_along_axis(a, jnp.maximum(last, 0).reshape(-1, *(1,) * (a.ndim - 1)), 1)[:, 0],
        before.astype(kind),
    )
    return out, Memory(of_last(theta, memory.angle), state, of_last(k, memory.k), of_last(v, memory.v))


def turn(x: jax.Array, theta: jax.Array) -> jax.Array:
    """x [..., K] with pair n of its channels, 2 n and 2 n + 1, turned by theta [..., A] for n < A <= K / 2."""
    count = theta.shape[-1]
    pairs = x[..., : 2 * count].reshape(*x.shape[:-1], count, 2)
    cos, sin, a, b = jnp.cos(theta), jnp.sin(theta), pairs[..., 0], pairs[..., 1]
    turned = jnp.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(*x.shape[:-1], 2 * count)
    return jnp.concatenate((turned, x[..., 2 * count :]), -1)


def _latest(real: jax.Array) -> jax.Array:
    """int32 [B]: the place of each row's last real token, -1 for none."""
    return jnp.where(real, jnp.arange(real.shape[1]), -1).max(1)


def _by_chunks(q, k, v, log_decay, now, before, rows, real, starts, memory, chunk):  # as `_token_by_token`
    length = real.shape[1]
    latest = jax.lax.cummax(jnp.where(real, jnp.arange(length), -1), axis=1)
    previous = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)  # the real token before each one

    def handed(a: jax.Array, first: jax.Array) -> jax.Array:
        """Of the token before, [B, L, H, ...]: ``first`` before the first, 0 at the head of another document."""
        wide = lambda mark: mark.reshape(*mark.shape, *(1,) * (a.ndim - 2))
        found = jnp.take_along_axis(a, wide(jnp.maximum(previous, 0)), 1)
        return jnp.where(wide(starts), 0, jnp.where(wide(previous < 0), first[:, None].astype(a.dtype), found))

    # The state that was given holds its last token with one of the two weights already.
    weight = (before + handed(now, jnp.zeros_like(now[:, 0]))) * jnp.exp(log_decay)
    values = weight[..., None] * handed(v, memory.v)
    out, state = scalar_decay(q, handed(k, memory.k), values, log_decay, rows=rows, state=memory.state, chunk=chunk)
    out = out + (now * (q * k).sum(-1))[..., None] * v
    at = jnp.maximum(latest[:, -1:], 0)[..., None]  # of a row without any real token, whose weight is 0
    k, v, weight = (jnp.take_along_axis(a, at.reshape(-1, 1, *(1,) * (a.ndim - 2)), 1)[:, 0] for a in (k, v, now))
    return out, state + weight[..., None, None] * k[..., :, None] * v[..., None, :]


def _token_by_token(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    now: jax.Array,
    before: jax.Array,
    rows: Rows | None,
    real: jax.Array,
    starts: jax.Array,
    memory: Memory,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Outputs [B, L, H, V] and the state after them, as the formula reads; ``now`` and ``before`` are [B, L, H], what
    the trapezoid gives to a token and to the one before it."""
    del rows, chunk

    def token(carried: tuple[jax.Array, ...], each: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
        q, k, v, log_decay, now, before, real, start = each
        wide = lambda a: a.reshape(*a.shape, *(1,) * (4 - a.ndim))
        state, last_k, last_v = (jnp.where(start.reshape(-1, *(1,) * (a.ndim - 1)), 0, a) for a in carried)
        faded = wide(jnp.exp(log_decay)) * (state + wide(before) * last_k[..., :, None] * last_v[..., None, :])
        state_new = faded + wide(now) * k[..., :, None] * v[..., None, :]
        new = (state_new, k, v)
        kept = tuple(
            jnp.where(real.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
            for a, b in zip(new, (state, last_k, last_v), strict=True)
        )
        return kept, jnp.einsum("bhk,bhkv->bhv", q, state_new, precision="highest")

    start = tuple(a.astype(q.dtype) for a in (memory.state, memory.k, memory.v))
    along = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (q, k, v, log_decay, now, before, real, starts))
    (state, _, _), out = jax.lax.scan(token, start, along)
    return jnp.moveaxis(out, 0, 1), state
