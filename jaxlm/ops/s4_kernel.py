"""Structured state spaces: their convolution kernels, and the same systems token by token.

    x' = A x + B u, y = Re(C x)  discretised:  x_l = Abar x_{l-1} + Bbar u_l,  K_l = Re(C Abar^l Bbar)

`Diagonal` has A = diag(lambda) (S4D, Gupta et al. 2022; Gu et al. 2022), `Dplr` A = diag(lambda) - P P^* (S4, Gu et al.
2022). Systems are real: of each pair of conjugate entries one is kept, and what is left out doubles the real part.

Kernels of `Dplr` are had from powers of Abar: with c about sqrt(L), K_{i + c j} = (C Abar^i) ((Abar^c)^j Bbar), two
short scans and a matmul, with no trace of L in the parameters; `generating_kernel` is the published way by the
generating function, whose output vector C (I - Abar^L) belongs to one length. Those of `Diagonal` are the same matmul
with powers as exponentials, whose angles are had exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxlm.ops.segments import Rows

DISCRETISATIONS = ("zoh", "bilinear")


class System(Protocol):
    """A discrete system of H inputs and outputs with n states each."""

    def step(self, x: jax.Array, u: jax.Array) -> jax.Array:
        """The state [..., H, n] after input [..., H]."""
        ...

    def read(self, x: jax.Array) -> jax.Array:
        """The output [..., H] of a state."""
        ...


class Diagonal(NamedTuple):
    """A diagonal system, discretised: complex [H, n] each.

    Attributes:
      log_a: logarithm of Abar.
      b: Bbar.
      c: C.
    """

    log_a: jax.Array
    b: jax.Array
    c: jax.Array

    def step(self, x: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.exp(self.log_a) * x + self.b * u[..., None]

    def read(self, x: jax.Array) -> jax.Array:
        return 2 * jnp.real(self.c * x).sum(-1)


class Dplr(NamedTuple):
    """A diagonal-plus-low-rank system under the bilinear rule.

    Attributes:
      lambda_, p, b, c: complex [H, n].
      dt: [H].
    """

    lambda_: jax.Array
    p: jax.Array
    b: jax.Array
    c: jax.Array
    dt: jax.Array

    def step(self, x: jax.Array, u: jax.Array) -> jax.Array:
        """Abar x + Bbar u: two products of a diagonal and rank 1, by Woodbury's identity."""
        half = self.dt[:, None] / 2
        met = lambda v: 2 * jnp.real(jnp.conj(self.p) * v).sum(-1, keepdims=True)  # P^* v, over both of each pair
        forward = x + half * (self.lambda_ * x - self.p * met(x)) + 2 * half * self.b * u[..., None]
        d = 1 / (1 - half * self.lambda_)
        return d * (forward - self.p * (half * met(d * forward) / (1 + half * met(d * self.p))))

    def read(self, x: jax.Array) -> jax.Array:
        return 2 * jnp.real(self.c * x).sum(-1)


def discretise(a: jax.Array, b: jax.Array, dt: jax.Array, rule: str = "zoh") -> tuple[jax.Array, jax.Array]:
    """The logarithm of Abar and Bbar of diagonal systems, complex or real [..., n], for step sizes that broadcast.

    ``rule`` is ``"zoh"``, a zero-order hold, or ``"bilinear"``.
    """
    step = dt * a
    if rule == "zoh":
        return step, b * jnp.expm1(step) / a
    # Abar = 0 has no logarithm; the next number above it has.
    step = jnp.where(step == -2, -2 * (1 - jnp.finfo(step.dtype).eps), step)
    return jnp.log1p(step / 2) - jnp.log1p(-step / 2), b * dt / (1 - step / 2)


def advance(
    system: System,
    u: jax.Array,
    *,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    states: int,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """Outputs [B, L, H] of inputs u [B, L, H], arbitrary on padding, and the state after them, token by token.

    Args:
      system: what steps and reads.
      rows: padding and documents; None for neither.
      state: complex64 [B, H, n] before these tokens; None for zeros.
      states: n.
      chunk: tokens between the states that the backward pass starts from.
    """
    u = u.astype(jnp.promote_types(u.dtype, jnp.float32))
    batch, length, width = u.shape
    x = jnp.zeros((batch, width, states), jnp.promote_types(u.dtype, jnp.complex64)) if state is None else state
    real, begins = jnp.ones((batch, length), bool), jnp.zeros((batch, length), bool)
    if rows is not None:
        real, begins = rows.real, jnp.diff(rows.epoch, axis=1, prepend=0) > 0
    size = min(chunk, length)
    count = -(-length // size)

    def token(x: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        u, real, begins = now
        x = jnp.where(begins[:, None, None], 0, x)
        x = jnp.where(real[:, None, None], system.step(x, u), x)
        return x, system.read(x)

    def chunks(v: jax.Array) -> jax.Array:
        """[B, L, ...] -> [chunks, C, B, ...]; what is added is padding."""
        v = jnp.pad(v, ((0, 0), (0, count * size - length), *((0, 0),) * (v.ndim - 2)))
        return jnp.moveaxis(v, 1, 0).reshape(count, size, *v.shape[:1], *v.shape[2:])

    step = jax.checkpoint(lambda x, now: jax.lax.scan(token, x, now))
    x, y = jax.lax.scan(step, x, (chunks(u), chunks(real), chunks(begins)))
    return jnp.moveaxis(y.reshape(count * size, batch, width), 0, 1)[:, :length], x


def diagonal_kernel(system: Diagonal, length: int) -> jax.Array:
    """K [L, H] of a diagonal system: a Vandermonde product, as one matmul of powers for small and for great steps."""
    small = 1 << (math.isqrt(max(length - 1, 1)).bit_length())
    great = -(-length // small)
    first = (system.c * system.b)[None] * powers(system.log_a, jnp.arange(small))
    second = powers(system.log_a, small * jnp.arange(great))
    return 2 * _meet(first, second)[:length]


def powers(log_a: jax.Array, exponents: jax.Array) -> jax.Array:
    """exp(l log_a) [l, ...] for integers l >= 0 of at most 12 significant bits.

    l times an angle is rounded to float32, which for thousands of turns leaves little of it. Here the angle is split
    in two parts of 12 bits, so that both products are exact.
    """
    l = exponents.astype(log_a.real.dtype).reshape(-1, *(1,) * log_a.ndim)
    fade, angle = jnp.exp(l * jnp.real(log_a)), jnp.imag(log_a)
    if not jnp.iscomplexobj(log_a):
        return fade
    if angle.dtype != jnp.float32:
        return fade * jnp.exp(1j * l * angle)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(angle), jnp.uint32)
    upper = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFF000), jnp.float32)
    turn = lambda t: jax.lax.complex(jnp.cos(l * t), jnp.sin(l * t))
    return fade * turn(upper) * turn(angle - upper)


def dplr_kernel(system: Dplr, length: int) -> jax.Array:
    """K [L, H] of a diagonal-plus-low-rank system, by powers of its Abar."""
    heads, states = system.lambda_.shape
    small = max(1, math.isqrt(length))
    great = -(-length // small)
    real = lambda x: jnp.concatenate((jnp.real(x), jnp.imag(x)), -1)
    whole = lambda x: jax.lax.complex(x[..., :states], x[..., states:])
    nothing = jnp.zeros((heads,), system.dt.dtype)
    move = lambda x: real(system.step(whole(x), nothing))  # Abar of a real state [..., H, 2n]

    basis = jnp.broadcast_to(jnp.eye(2 * states, dtype=system.dt.dtype)[:, None], (2 * states, heads, 2 * states))
    _, back = jax.vjp(lambda x: move(x), basis[0])
    read = real(2 * jnp.conj(system.c))
    several = jax.lax.scan(lambda x, _: (move(x), None), basis, None, small)[0]
    rows = jax.lax.scan(lambda c, _: (back(c)[0], c), read, None, small)[1]  # C Abar^i [i, H, 2n]
    first = real(system.step(jnp.zeros_like(system.b), nothing + 1))  # Bbar
    matrix = jnp.transpose(several, (1, 0, 2))  # [H, from, to]
    far = lambda x: jnp.matmul(x[:, None], matrix, precision="highest")[:, 0]
    columns = jax.lax.scan(lambda x, _: (far(x), x), first, None, great)[1]  # (Abar^c)^j Bbar
    return _meet(rows, columns)[:length]


def _meet(first: jax.Array, second: jax.Array) -> jax.Array:
    """sum_n Re(first[i, h, n] second[j, h, n]) at i + |first| j, [ij, H]."""
    if jnp.iscomplexobj(first):
        first = jnp.concatenate((jnp.real(first), -jnp.imag(first)), -1)
        second = jnp.concatenate((jnp.real(second), jnp.imag(second)), -1)
    product = jnp.einsum("ihn,jhn->hji", first, second, precision="highest")
    return product.reshape(product.shape[0], -1).T


def generating_kernel(
    lambda_: jax.Array, p: jax.Array, b: jax.Array, c_tilde: jax.Array, dt: jax.Array, length: int
) -> jax.Array:
    """K [..., L] = Re(C Abar^l Bbar) under the bilinear rule, by its generating function at the L-th roots of unity.

    Args:
      lambda_, p, b: complex [..., N], all entries of a system diag(lambda) - P P^*.
      c_tilde: C (I - Abar^L), complex [..., N].
      dt: [...].
      length: L.
    """
    w = jnp.exp(-2j * jnp.pi * jnp.arange(length) / length).astype(lambda_.dtype)[:, None]
    # Multiplied through by 1 + w, which the textbook's form divides by, and which is 0 at w = -1.
    d = 2 / dt[..., None, None] * (1 - w) - lambda_[..., None, :] * (1 + w)
    s = lambda left, right: ((left * right)[..., None, :] / d).sum(-1)
    q, w = jnp.conj(p), 1 + w[:, 0]
    hat = 2 * s(c_tilde, b) - 2 * w * s(c_tilde, p) * s(q, b) / (1 + w * s(q, p))
    return jnp.real(jnp.fft.ifft(hat))


def dplr_matrices(lambda_: jax.Array, p: jax.Array, b: jax.Array, dt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Abar [..., N, N] and Bbar [..., N] under the bilinear rule, of all N entries of diag(lambda) - P P^*."""
    half, eye = dt[..., None] / 2, jnp.eye(lambda_.shape[-1])
    outer = lambda a, b: a[..., :, None] * b[..., None, :]
    q, d = jnp.conj(p), 1 / (1 - half * lambda_)
    low = half / (1 + half * (q * d * p).sum(-1, keepdims=True))
    inverse = d[..., None] * eye - outer(low * d * p, q * d)
    forward = (1 + half * lambda_)[..., None] * eye - outer(half * p, q)
    return inverse @ forward, (inverse @ (2 * half * b)[..., None])[..., 0]
