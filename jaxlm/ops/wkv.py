"""RWKV-4's average of values, weighted by the exponentials of keys and of a decay for each token since.

    wkv_t = (N_{t-1} + e^{u + k_t} v_t) / (D_{t-1} + e^{u + k_t})
    N_t = e^w N_{t-1} + e^{k_t} v_t        D_t = e^w D_{t-1} + e^{k_t}

Sums are kept divided by e^{m_t}, m_t = max(m_{t-1} + w, k_t). The m alone are a scan over maxima; given them, both sums
are a diagonal scan with decays m_{t-1} + w - m_t <= 0. No result depends on m, so it has no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose
from jaxlm.ops.diagonal_scan import diagonal_scan
from jaxlm.ops.segments import Rows

IMPLEMENTATIONS = ("xla", "reference")
_NONE = -1e30


class Sums(NamedTuple):
    """The state, float32 [B, C] each; zeros for a row that has not begun.

    Attributes:
      numerator: N / e^m.
      denominator: D / e^m.
      exponent: m, which means nothing where the denominator is 0.
    """

    numerator: jax.Array
    denominator: jax.Array
    exponent: jax.Array


def wkv(
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    bonus: jax.Array,
    *,
    rows: Rows | None = None,
    state: Sums | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, Sums]:
    """Outputs of L tokens and the sums after them.

    Args:
      k, v: [B, L, C].
      log_decay: w, [C], < 0.
      bonus: u, [C].
      rows: padding and documents; None for neither.
      state: before these tokens; None for none.
      chunk: of `jaxlm.ops.diagonal_scan`.
      implementation: ``"xla"`` (two scans as trees), ``"reference"`` (token by token); None for the faster.

    Returns:
      [B, L, C] in v's dtype, arbitrary on padding, and the sums.
    """
    choose("wkv: implementation", implementation or "xla", IMPLEMENTATIONS)
    kind, like = jnp.promote_types(k.dtype, jnp.float32), v.dtype
    k, v, w, u = (x.astype(kind) for x in (k, v, log_decay, bonus))
    zeros = jnp.zeros((k.shape[0], k.shape[2]), kind)
    start = Sums(zeros, zeros, zeros) if state is None else Sums(*(x.astype(kind) for x in state))
    exponent = jax.lax.stop_gradient(start.exponent)
    scale = jnp.exp(start.exponent - exponent)  # 1, with the gradient that m's own value is to have
    exponent = jnp.where(start.denominator > 0, exponent, _NONE)
    start = Sums(scale * start.numerator, scale * start.denominator, exponent)
    real, begins = jnp.ones(k.shape[:2], bool), jnp.zeros(k.shape[:2], bool)
    if rows is not None:
        real, begins = rows.real, jnp.diff(rows.epoch, axis=1, prepend=0) > 0
    real, begins = real[..., None], begins[..., None]
    if implementation == "reference":
        out, last = _by_tokens(k, v, w, u, real, begins, start)
        return out.astype(like), last

    # A document's first token forgets all exponents before it.
    fade = jnp.where(begins, _NONE, jnp.where(real, w, 0))
    own = jnp.where(real, k, _NONE)
    m = _maxima(*map(jax.lax.stop_gradient, (fade, own, start.exponent)))
    before = jnp.concatenate((start.exponent[:, None], m[:, :-1]), 1)
    decays = jnp.where(begins | (before <= _NONE), _NONE, jnp.where(real, before + w - m, 0))
    weight = jnp.where(real, jnp.exp(jnp.where(real, k - m, 0)), 0)
    new = jnp.stack((weight * v, weight), -1)
    first = jnp.stack((start.numerator, start.denominator), -1)
    sums, last = diagonal_scan(decays[..., None], new, rows=rows, state=first, chunk=chunk)
    sums = jnp.concatenate((first[:, None], sums[:, :-1]), 1)
    sums, before = jnp.where(begins[..., None], 0, sums), jnp.where(begins, _NONE, before)
    out = _average(sums[..., 0], sums[..., 1], before, k, v, u)
    return out.astype(like), Sums(last[..., 0], last[..., 1], jnp.where(last[..., 1] > 0, m[:, -1], 0))


def _maxima(fade: jax.Array, own: jax.Array, start: jax.Array) -> jax.Array:
    """m_t = max(m_{t-1} + fade_t, own_t) [B, L, C] after ``start`` [B, C]."""

    def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jnp.maximum(a[0] + b[0], 2 * _NONE), jnp.maximum(a[1] + b[0], b[1])

    own = jnp.concatenate((jnp.maximum(own[:, :1], start[:, None] + fade[:, :1]), own[:, 1:]), 1)
    return jnp.maximum(jax.lax.associative_scan(join, (fade, own), axis=1)[1], _NONE)


def _average(n: jax.Array, d: jax.Array, m: jax.Array, k: jax.Array, v: jax.Array, u: jax.Array) -> jax.Array:
    """(e^m n + e^{u + k} v) / (e^m d + e^{u + k}), whose greatest exponent is taken out."""
    top = jax.lax.stop_gradient(jnp.maximum(m, u + k))
    old, new = jnp.exp(m - top), jnp.exp(u + k - top)
    return (old * n + new * v) / (old * d + new)


def _by_tokens(
    k: jax.Array, v: jax.Array, w: jax.Array, u: jax.Array, real: jax.Array, begins: jax.Array, start: Sums
) -> tuple[jax.Array, Sums]:
    """As the formula reads."""

    def token(state: Sums, now: tuple[jax.Array, ...]) -> tuple[Sums, jax.Array]:
        k, v, real, begins = now
        n, d, m = state
        n, d, m = jnp.where(begins, 0, n), jnp.where(begins, 0, d), jnp.where(begins, _NONE, m)
        top = jax.lax.stop_gradient(jnp.maximum(m + w, k))
        old, new = jnp.exp(m + w - top), jnp.exp(k - top)
        after = Sums(old * n + new * v, old * d + new, top)
        return Sums(*(jnp.where(real, a, b) for a, b in zip(after, state, strict=True))), _average(n, d, m, k, v, u)

    last, out = jax.lax.scan(token, start, tuple(jnp.moveaxis(x, 1, 0) for x in (k, v, real, begins)))
    return jnp.moveaxis(out, 0, 1), last._replace(exponent=jnp.where(last.denominator > 0, last.exponent, 0))
