"""Linear recurrences whose state fades entry by entry, with nothing shared between the entries.

    h_t = exp(g_t) h_{t-1} + x_t

S4D, S5 and RG-LRU are this with other g and x. Chunks follow each other in a scan; within one, pairs (decay, sum) are
joined in a tree of depth log2 C (Blelloch 1990). Decays are multiplied, never divided, so strong ones are harmless.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose
from jaxlm.ops.segments import Rows

IMPLEMENTATIONS = ("xla", "reference")


def diagonal_scan(
    log_decay: jax.Array,
    x: jax.Array,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The states after each of L tokens, and after the last.

    Args:
      log_decay: g, real or complex with real part <= 0: of each token [B or 1, L, ...], or [...] for all.
      x: [B, L, ...], real or complex.
      rows: padding and documents; None for neither.
      state: [B, ...] before these tokens; None for zeros.
      chunk: C, tokens that are joined as a tree.
      implementation: ``"xla"`` (by chunks), ``"reference"`` (token by token); None for the latter on a CPU, where the
        tree is slower, and the former elsewhere.

    Returns:
      h [B, L, ...] and the last state [B, ...], float32 or complex64 (double for such inputs). At padding, h is the
      state of the last real token.
    """
    choose("diagonal_scan: implementation", implementation or "xla", IMPLEMENTATIONS)
    inputs = _prepared(log_decay, x, rows, state)
    by_chunks = functools.partial(_by_chunks, chunk=chunk)
    if implementation is None:
        return jax.lax.platform_dependent(*inputs, cpu=_by_tokens, default=by_chunks)
    return (_by_tokens if implementation == "reference" else by_chunks)(*inputs)


def _by_chunks(decay: jax.Array, x: jax.Array, start: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    length = x.shape[1]
    size = min(chunk, length)
    count = -(-length // size)

    def chunks(a: jax.Array, fill: int) -> jax.Array:
        """[B or 1, L, ...] -> [chunks, B or 1, C, ...]."""
        a = jnp.pad(a, ((0, 0), (0, count * size - length), *((0, 0),) * (a.ndim - 2)), constant_values=fill)
        return jnp.moveaxis(a.reshape(a.shape[0], count, size, *a.shape[2:]), 1, 0)

    @jax.checkpoint
    def step(start: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h = scan_within(*now, start)
        return h[:, -1], h

    last, h = jax.lax.scan(step, start, (chunks(decay, 1), chunks(x, 0)))
    return jnp.moveaxis(h, 0, 1).reshape(x.shape[0], count * size, *x.shape[2:])[:, :length], last


def scan_within(decay: jax.Array, x: jax.Array, start: jax.Array) -> jax.Array:
    """h [B, C, ...] of a chunk, as a tree, from decays (not their logarithms) [B or 1, C, ...] and start [B, ...]."""

    def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return a[0] * b[0], a[1] * b[0] + b[1]

    if x.shape[1] == 1:
        return decay * start[:, None] + x
    x = jnp.concatenate((x[:, :1] + decay[:, :1] * start[:, None], x[:, 1:]), 1)
    return jax.lax.associative_scan(join, (decay, x), axis=1)[1]


def _by_tokens(decay: jax.Array, x: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As the formula reads."""

    def token(state: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        state = now[0] * state + now[1]
        return state, state

    last, h = jax.lax.scan(token, start, (jnp.moveaxis(decay, 1, 0), jnp.moveaxis(x, 1, 0)))
    return jnp.moveaxis(h, 0, 1), last


def _prepared(
    log_decay: jax.Array, x: jax.Array, rows: Rows | None, state: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decays [B or 1, L, ...], x and the start, with documents and padding in them."""
    kind = jnp.promote_types(jnp.promote_types(log_decay.dtype, x.dtype), jnp.float32)
    decay = jnp.exp(log_decay.astype(jnp.promote_types(log_decay.dtype, jnp.float32)))
    if log_decay.ndim < x.ndim:
        decay = jnp.broadcast_to(decay, (1, x.shape[1], *x.shape[2:]))
    x = x.astype(kind)
    if rows is not None:
        real, begins = _along(rows.real, x), _along(jnp.diff(rows.epoch, axis=1, prepend=0) > 0, x)
        decay = jnp.where(begins, 0, jnp.where(real, decay, 1))
        x = jnp.where(real, x, 0)
    start = jnp.zeros((x.shape[0], *x.shape[2:]), kind) if state is None else state.astype(kind)
    return decay, x, start


def _along(flags: jax.Array, x: jax.Array) -> jax.Array:
    """[B, L] -> [B, L, 1, ...], of as many axes as x."""
    return flags.reshape(*flags.shape, *(1,) * (x.ndim - 2))
