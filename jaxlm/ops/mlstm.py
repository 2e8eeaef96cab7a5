"""The matrix memory of xLSTM: a scalar decay whose input gate is an exponential, kept in range by a running maximum m.

    m_t = max(f_t + m_{t-1}, i_t)                          f_t = log sigmoid(.) <= 0, the logarithm of the forget gate
    C_t = exp(f_t + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_t^T            n_t likewise, with 1 for v
    h_t = C_t^T q_t / (max(|n_t . q_t|, exp(-m_t)) + eps)

What the state stands for is exp(m) C, so h does not depend on m but for eps. Both exponents are <= 0: given m, which is
a scan of (max, +) over single numbers, C and n are `jaxlm.ops.scalar_decay` of keys exp(i - m) k, in any form of it
(Beck et al. 2024; 2025).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose
from jaxlm.ops.scalar_decay import scalar_decay
from jaxlm.ops.segments import Rows

IMPLEMENTATIONS = ("xla", "reference")
EPS = 1e-6  # added to the normaliser
NEVER = -1e30  # a logarithm of nothing, which sums of two of do not overflow


class Memory(NamedTuple):
    """float32 c [B, H, K, V], n [B, H, K] and m [B, H]; zeros before the first token."""

    c: jax.Array
    n: jax.Array
    m: jax.Array


def mlstm(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_input: jax.Array,
    log_forget: jax.Array,
    *,
    rows: Rows | None = None,
    state: Memory | None = None,
    eps: float = EPS,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, Memory]:
    """Outputs of L tokens and the memory after them.

    Args:
      q, k: [B, L, H, K], not scaled.
      v: [B, L, H, V].
      log_input: float32 [B, L, H], i, any numbers.
      log_forget: float32 [B, L, H], f <= 0.
      rows: padding and documents; None for neither.
      state: before these tokens; None for zeros.
      eps: added to the normaliser.
      chunk: tokens that meet each other as matrices.
      implementation: ``"xla"`` (by chunks), ``"reference"`` (token by token); None for the fastest that serves.

    Returns:
      h [B, L, H, V] in v's dtype, arbitrary on padding, and the memory. Raises `ConfigError` for an unknown
      implementation.
    """
    if choose("mlstm: implementation", implementation or "xla", IMPLEMENTATIONS) == "reference":
        return reference(q, k, v, log_input, log_forget, rows=rows, state=state, eps=eps)
    read, m, memory = accumulate(q, k, v, log_input, log_forget, rows=rows, state=state, chunk=chunk)
    return normalised(read, m, eps).astype(v.dtype), memory


def accumulate(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_input: jax.Array,
    log_forget: jax.Array,
    *,
    rows: Rows | None = None,
    state: Memory | None = None,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array, Memory]:
    """[C_t^T q_t | n_t . q_t] float32 [B, L, H, V + 1], m_t [B, L, H], and the memory after L tokens."""
    kind = jnp.promote_types(q.dtype, jnp.float32)
    start = jnp.zeros_like(log_input[:, 0], kind) if state is None else state.m.astype(kind)
    decay, gate, m = _stabilised(log_input.astype(kind), log_forget.astype(kind), rows, start)
    both = None if state is None else jnp.concatenate((state.c, state.n[..., None]), -1)
    values = jnp.concatenate((v.astype(kind), jnp.ones_like(v[..., :1], kind)), -1)  # n is what a value of 1 leaves
    read, both = scalar_decay(
        q, k.astype(kind) * jnp.exp(gate)[..., None], values, decay, rows=rows, state=both, chunk=chunk
    )
    return read, m, Memory(both[..., :-1], both[..., -1], m[:, -1])


def fading(log_forget: jax.Array, rows: Rows | None) -> jax.Array:
    """Logarithms [B, L, H] of what is left, at each token, of a memory that came in."""
    if rows is None:
        return jnp.cumsum(log_forget, 1)
    fade = jnp.cumsum(jnp.where(rows.real[..., None], log_forget, 0), 1)
    return jnp.where((rows.epoch == 0)[..., None], fade, NEVER)


def joined(
    fade: jax.Array, before: tuple[jax.Array, jax.Array], own: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """``before``, faded, and ``own`` put together; each is (x, m), x [*m.shape, ...], and stands for exp(m) x."""
    (x, m), (y, n) = before, own
    most = jnp.maximum(fade + m, n)
    times = lambda log, x: x * jnp.exp(log).reshape(*log.shape, *(1,) * (x.ndim - log.ndim))
    return times(fade + m - most, x) + times(n - most, y), most


def _stabilised(
    log_input: jax.Array, log_forget: jax.Array, rows: Rows | None, start: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logarithms [B, L, H] of the stabilised decay and input gate, both <= 0, and m."""
    add, least = log_forget, log_input  # m -> max(m + add, least)
    begins = None
    if rows is not None:
        real, begins = rows.real[..., None], (jnp.diff(rows.epoch, axis=1, prepend=0) > 0)[..., None]
        add, least = jnp.where(real, add, 0), jnp.where(real, least, NEVER)
        add, least = jnp.where(begins, NEVER, add), jnp.where(begins, jnp.maximum(add, least), least)

    total, most = add, least
    for step in (1 << i for i in range((add.shape[1] - 1).bit_length())):
        # `jax.lax.associative_scan`, whose strided slices crash the compiler of jax 0.11 in the gradient on a mesh.
        earlier = lambda x, none, step=step: jnp.pad(x[:, :-step], ((0, 0), (step, 0), (0, 0)), constant_values=none)
        most = jnp.maximum(earlier(most, NEVER) + total, most)
        total = jnp.maximum(earlier(total, 0.0) + total, NEVER)
    m = jnp.maximum(start[:, None] + total, most)
    before = jnp.concatenate((start[:, None], m[:, :-1]), 1)
    if rows is not None and begins is not None:
        before = jnp.where(begins, 0, before)
        log_input = jnp.where(rows.real[..., None], log_input, m)
        log_forget = jnp.where(rows.real[..., None], log_forget, 0)
    # Both are <= 0 but for the rounding of m, which came about in another order.
    return jnp.minimum(log_forget + before - m, 0), jnp.minimum(log_input - m, 0), m


def normalised(read: jax.Array, m: jax.Array, eps: float) -> jax.Array:
    """h [..., V] of [C^T q | n . q] and m. Where exp(-m) were beyond exp(80), h is 0 but its gradient not finite."""
    weight = jnp.maximum(jnp.abs(read[..., -1]), jnp.exp(-jnp.maximum(m, -80.0)))
    return read[..., :-1] / (weight + eps)[..., None]


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_input: jax.Array,
    log_forget: jax.Array,
    *,
    rows: Rows | None = None,
    state: Memory | None = None,
    eps: float = EPS,
) -> tuple[jax.Array, Memory]:
    """`mlstm` as the formula reads, token after token; float64 for such inputs."""
    kind = jnp.promote_types(q.dtype, jnp.float32)
    (batch, length, heads, width), depth = q.shape, v.shape[-1]
    real = jnp.ones((batch, length), bool) if rows is None else rows.real
    begins = jnp.zeros_like(real) if rows is None else jnp.diff(rows.epoch, axis=1, prepend=0) > 0
    if state is None:
        shapes = (batch, heads, width, depth), (batch, heads, width), (batch, heads)
        state = Memory(*(jnp.zeros(shape, kind) for shape in shapes))

    def token(memory: Memory, now: tuple[jax.Array, ...]) -> tuple[Memory, jax.Array]:
        q, k, v, i, f, real, begins = now
        old = Memory(*(jnp.where(begins.reshape(-1, *(1,) * (x.ndim - 1)), 0, x) for x in memory))
        m = jnp.maximum(f + old.m, i)
        fade, gate = jnp.exp(f + old.m - m), jnp.exp(i - m)
        c = fade[..., None, None] * old.c + gate[..., None, None] * k[..., :, None] * v[..., None, :]
        n = fade[..., None] * old.n + gate[..., None] * k
        new = Memory(
            *(jnp.where(real.reshape(-1, *(1,) * (x.ndim - 1)), x, y) for x, y in zip((c, n, m), memory, strict=True))
        )
        both = jnp.concatenate((new.c, new.n[..., None]), -1)
        return new, normalised(jnp.einsum("bhk,bhkv->bhv", q, both, precision="highest"), new.m, eps)

    along = tuple(x.astype(kind) for x in (q, k, v, log_input, log_forget)) + (real, begins)
    start = Memory(*(x.astype(kind) for x in state))
    last, h = jax.lax.scan(token, start, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), along))
    return jnp.moveaxis(h, 0, 1).astype(v.dtype), last
