"""The selective scan of Mamba: a diagonal state per channel whose step size, input and output come from the token.

    h_t = exp(delta_t A) h_{t-1} + (delta_t u_t) B_t        y_t = C_t . h_t + D u_t

A is discretised exactly, B by Euler's rule (Gu & Dao 2023). States [L, C, N] are never held: tokens are discretised
within the scan, and the backward pass runs each chunk again from its first state, so that memory is
O(B L C + B C N L / chunk). A CPU takes token after token, whose states stay in its cache; accelerators without a kernel
join the tokens of a chunk as a tree, which is wide enough for them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import jax
import jax.numpy as jnp

from jaxlm.core.errors import ConfigError, choose
from jaxlm.ops.diagonal_scan import scan_within
from jaxlm.ops.segments import Rows
from pallas_kernels.block_sparse_attention.call import target
from pallas_kernels.selective_scan import call

KERNELS = {"triton": "gpu", "tpu": "tpu"}  # and their platforms, in the order in which they are tried
IMPLEMENTATIONS = (*KERNELS, "xla", "tree", "reference")
FEW_TOKENS = 16  # that would leave most of a kernel's chunk empty; it takes them if it is named


def selective_scan(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    *,
    d: jax.Array | None = None,
    rows: Rows | None = None,
    state: jax.Array | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Outputs of L tokens and the state after them.

    Args:
      u: [B, L, C].
      delta: [B, L, C], step sizes > 0.
      a: [C, N], < 0.
      b, c: [B, L, G, N], of which channel i reads group i // (C / G); or [C, N], the same for all tokens.
      d: [C], the skip; None for none.
      rows: padding and documents; None for neither.
      state: float32 [B, C, N] before these tokens; None for zeros.
      chunk: tokens between the states that the backward pass starts from; kernels have their own.
      implementation: ``"triton"`` or ``"tpu"`` (kernels), ``"xla"`` (token by token, with a gradient written by hand; b
        or c that are the same for all tokens go as a tree), ``"tree"`` (by chunks, within them as a tree),
        ``"reference"`` (token by token); None for the first kernel that serves, else ``"xla"`` on a CPU and ``"tree"``
        elsewhere.

    Returns:
      y [B, L, C] in u's dtype, arbitrary on padding, and the float32 state [B, C, N].

    Raises `ConfigError` for an unknown implementation, or one that cannot serve, with its reason.
    """
    choose("selective_scan: implementation", implementation or "xla", IMPLEMENTATIONS)
    for name in KERNELS:
        if implementation == name or (implementation is None and u.shape[1] > FEW_TOKENS):
            reason = _refusal(name, u, delta, a, b, c)
            if not reason:
                return _by(name, u, delta, a, b, c, d, rows, state)
            if implementation:
                raise ConfigError(f"selective_scan implementation {name!r} cannot serve this call: {reason}")
    in_turn = implementation == "xla" or (implementation is None and target().platform == "cpu")
    if in_turn and b.ndim == c.ndim == 4:
        return _by("xla", u, delta, a, b, c, d, rows, state, tokens=min(chunk, u.shape[1]))
    kind = jnp.promote_types(u.dtype, jnp.float32)
    batch, length, channels = u.shape
    groups = next((m.shape[2] for m in (b, c) if m.ndim == 4), 1)
    grouped = lambda x: x.astype(kind).reshape(*x.shape[:-1], groups, channels // groups)
    constant = lambda x: x.astype(kind).reshape(groups, channels // groups, x.shape[-1])
    a_GRN = constant(a)
    u_BLGR, delta_BLGR = grouped(u), grouped(delta)
    begins = jnp.zeros((batch, length), bool)
    if rows is not None:
        delta_BLGR = jnp.where(rows.real[..., None, None], delta_BLGR, 0)  # neither fades nor adds
        begins = jnp.diff(rows.epoch, axis=1, prepend=0) > 0
    start = jnp.zeros((batch, channels, a.shape[-1]), kind) if state is None else state.astype(kind)
    start = start.reshape(batch, *a_GRN.shape)
    fixed = {name: constant(m) for name, m in (("b", b), ("c", c)) if m.ndim == 2}
    moving = {name: m.astype(kind) for name, m in (("b", b), ("c", c)) if m.ndim == 4}
    moving |= {"u": u_BLGR, "delta": delta_BLGR, "begins": begins}

    def steps(now: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Decays and inputs [..., G, R, N] of tokens."""
        delta, b = now["delta"][..., None], fixed.get("b")
        b = now["b"][..., None, :] if b is None else b
        decay = jnp.where(now["begins"][..., None, None, None], 0, jnp.exp(delta * a_GRN))
        return decay, delta * now["u"][..., None] * b

    def read(now: dict[str, jax.Array], h: jax.Array) -> jax.Array:
        c = fixed.get("c")
        return jnp.sum(h * (now["c"][..., None, :] if c is None else c), -1)

    def token(h: jax.Array, now: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        decay, new = steps(now)
        h = decay * h + new
        return h, read(now, h)

    in_time = lambda x: jnp.moveaxis(x, 1, 0)
    if implementation == "reference":
        last, y = jax.lax.scan(token, start, {name: in_time(x) for name, x in moving.items()})
        y = in_time(y)
    else:
        size = min(chunk, length)
        count = -(-length // size)

        def chunks(x: jax.Array) -> jax.Array:
            """[B, L, ...] -> [chunks, B, C, ...]; what is added has step size 0."""
            x = jnp.pad(x, ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2)))
            return in_time(x.reshape(batch, count, size, *x.shape[2:]))

        @jax.checkpoint
        def step(h: jax.Array, now: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            states = scan_within(*steps(now), h)
            return states[:, -1], read(now, states)

        last, y = jax.lax.scan(step, start, {name: chunks(x) for name, x in moving.items()})
        y = in_time(y).reshape(batch, count * size, *u_BLGR.shape[2:])[:, :length]
    y = y.reshape(batch, length, channels)
    if d is not None:
        y = y + d.astype(kind) * u.astype(kind)
    return y.astype(u.dtype), last.reshape(batch, channels, a.shape[-1])


def _refusal(name: str, u: jax.Array, delta: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array) -> str | None:
    """Why a kernel cannot serve, or None."""
    at = target()
    if at.platform != KERNELS[name] and not at.interpret:
        return f"it is for {KERNELS[name]} and this is {at.platform}"
    if b.ndim != 4 or b.shape != c.shape:
        return "b and c are not both of tokens and groups"
    return _backend(name).supports(call.request(u, delta, a, b, c, at.platform, at.interpret))


def _backend(name: str) -> ModuleType:
    """Imported only where it could run."""
    return importlib.import_module(f"pallas_kernels.selective_scan.{name}")


def _by(
    name: str,
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    d: jax.Array | None,
    rows: Rows | None,
    state: jax.Array | None,
    tokens: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The call by a back end of `pallas_kernels.selective_scan`."""
    epochs = None
    if rows is not None:
        delta, epochs = jnp.where(rows.real[..., None], delta, 0), rows.epoch  # padding neither fades nor adds
    options = {"epochs": epochs, "state": state, "tokens": tokens, "interpret": target().interpret}
    y, last = call.scan(u, delta, a, b, c, backend=_backend(name), **options)
    if d is not None:
        kind = jnp.promote_types(u.dtype, jnp.float32)
        y = (y + d.astype(kind) * u.astype(kind)).astype(u.dtype)
    return y, last
