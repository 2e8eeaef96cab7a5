"""The recurrence in plain JAX, for computers without a kernel: token after token, and back again.

Tiles are [B G, N, C / G], with channels innermost, so that a CPU's vectors are full, its sums over N add whole vectors,
and each token is a few loops that XLA fuses whole (with the groups as an axis of their own they take five times as
long). The gradient is that of `core`, token by token as well: XLA would fuse what is done for all tokens of a chunk at
once into its reductions, and compute the exponentials again for each, unvectorised.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.selective_scan import core
from pallas_kernels.selective_scan.core import Arrays, Request, Sizes

CHUNK = 64
STATES_AXIS = 1  # of a tile


def supports(request: Request) -> str | None:
    """It serves every call."""
    return None


def sizes(request: Request) -> Sizes:
    """Nothing is padded but the length."""
    return Sizes(CHUNK, 1, request.states)


def forward(
    arrays: Arrays, state: jax.Array, sizes: Sizes, interpret: Any, keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The contract of `core`; ``starts`` are tiles [chunks, ...]."""
    call = _Call(arrays, sizes)

    def token(h: jax.Array, now: Arrays) -> tuple[jax.Array, jax.Array]:
        h = core.forward(h, now.u, now.delta, call.a, now.b, now.stays)
        return h, (h * now.c).sum(STATES_AXIS, keepdims=True)

    def chunk(h: jax.Array, now: Arrays) -> tuple[jax.Array, Any]:
        last, y = jax.lax.scan(token, h, now)
        return last, (y, h) if keep else (y,)

    last, (y, *starts) = jax.lax.scan(chunk, call.tile(state), call.tokens)
    return call.row(y).astype(arrays.u.dtype), call.whole(last), starts[0] if keep else None


def backward(
    arrays: Arrays, starts: jax.Array, sizes: Sizes, interpret: Any, dy: jax.Array, dfinal: jax.Array
) -> tuple[Arrays, jax.Array]:
    """The contract of `core`."""
    call = _Call(arrays, sizes)

    def again(h: jax.Array, now: Arrays) -> tuple[jax.Array, jax.Array]:
        return core.forward(h, now.u, now.delta, call.a, now.b, now.stays), h

    def token(carry: tuple[jax.Array, jax.Array], at: Any) -> tuple[Any, Arrays]:
        (dstate, da), (now, before, dy) = carry, at
        found = core.backward(
            before, now.u, now.delta, call.a, now.b, now.c, now.stays, dy, dstate, axis=STATES_AXIS
        )  # fmt: skip
        of_state = lambda x: x.sum(-1, keepdims=True)
        return (found.state, da + found.a), now._replace(
            u=found.u, delta=found.delta, b=of_state(found.b), c=of_state(found.c)
        )

    def chunk(carry: tuple[jax.Array, jax.Array], at: Any) -> tuple[Any, Arrays]:
        now, start, dy = at
        _, before = jax.lax.scan(again, start, now)
        return jax.lax.scan(token, carry, (now, before, dy), reverse=True)

    last = call.tile(dfinal)
    (dfirst, da), found = jax.lax.scan(
        chunk, (last, jnp.zeros_like(last)), (call.tokens, starts, call.channels(dy)), reverse=True
    )
    gradients = arrays._replace(
        u=call.row(found.u),
        delta=call.row(found.delta),
        a=call.whole(da),
        b=call.column(found.b),
        c=call.column(found.c),
    )
    return gradients, call.whole(dfirst)


class _Call:
    """The arrays of a call in chunks of T tokens, in layouts that broadcast to tiles; P = B G.

    Attributes:
      tokens: u, delta [chunks, T, P, 1, C / G], b, c [chunks, T, P, N, 1], stays [chunks, T, P, 1, 1] or None, all
        float32; of a nothing.
      a: [P, N, C / G].
    """

    def __init__(self, arrays: Arrays, sizes: Sizes) -> None:
        self.size, (self.batch, self.groups) = sizes.tokens, arrays.b.shape[:2]
        columns = lambda x: self._chunks(x.transpose(2, 0, 1, 3))[..., None]
        stays = arrays.stays
        if stays is not None:
            stays = self._chunks(jnp.repeat(stays, self.groups, 0).T)[..., None, None]
        self.a = self.tile(jnp.broadcast_to(arrays.a, (self.batch, *arrays.a.shape)))
        self.tokens = Arrays(
            u=self.channels(arrays.u),
            delta=self.channels(arrays.delta),
            a=None,  # pyright: ignore[reportArgumentType]
            b=columns(arrays.b),
            c=columns(arrays.c),
            stays=stays,
        )

    def _chunks(self, x: jax.Array) -> jax.Array:
        """[L, ..., n] as [chunks, T, P, n]."""
        return x.astype(jnp.float32).reshape(-1, self.size, self.batch * self.groups, *x.shape[3:])

    def channels(self, x: jax.Array) -> jax.Array:
        """[B, L, C] for every token."""
        x = x.swapaxes(0, 1)
        return self._chunks(x.reshape(*x.shape[:2], self.groups, -1))[:, :, :, None]

    def row(self, x: jax.Array) -> jax.Array:
        """`channels` undone."""
        return x.reshape(-1, self.batch, self.groups * x.shape[-1]).swapaxes(0, 1)

    def column(self, x: jax.Array) -> jax.Array:
        """[chunks, T, P, N, 1] as [B, G, L, N]."""
        return x.reshape(-1, self.batch, self.groups, x.shape[-2]).transpose(1, 2, 0, 3)

    def tile(self, state: jax.Array) -> jax.Array:
        """Of [B, C, N]."""
        return state.reshape(self.batch * self.groups, -1, state.shape[-1]).swapaxes(1, 2)

    def whole(self, tile: jax.Array) -> jax.Array:
        """`tile` undone."""
        return tile.swapaxes(1, 2).reshape(self.batch, -1, tile.shape[1])
