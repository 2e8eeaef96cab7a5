"""Linear recurrences by chunks of C tokens: how rows are cut, what documents change, and products that fade.

A state of K x V numbers fades by exp(g_t), one g <= 0 for each token and head, or for each token and key channel, and
outer products are added to it. Within a chunk that leaves, between a token i and an earlier one j,

    F_ij = exp(sum_{j < t <= i} g_t)        A_ij = sum_k x_ik F_ijk y_jk

Every exponent here is a sum of the log decays between two tokens, and so <= 0; none is a difference of running sums,
which behind a token of -200 would have lost the digits of one of -1e-7. Where g differs by channel, F does not come
out of the sum over k. Then tokens of different sub-chunks of 16 meet as two factors, decay since the start of i's
sub-chunk and decay before it, and those within one as 16 x 16 x K numbers (Yang et al. 2024, GLA).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.ops.segments import Rows

SUB = 16  # tokens of a sub-chunk


class Documents(NamedTuple):
    """Who meets whom in a chunk: floats 0 or 1, of shapes that broadcast.

    Attributes:
      pairs: [B, 1, C, C], tokens of one document.
      start: [B, 1, C, 1], tokens that read the state at the chunk's start.
      end: [B, 1, C, 1], tokens whose document is the last of the chunk.
      carry: [B, 1, 1, 1], whether the state at the start lives on to the end.
    """

    pairs: jax.Array
    start: jax.Array
    end: jax.Array
    carry: jax.Array


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The decays of C tokens.

    Attributes:
      log_decay: [B, H, C, 1] or [B, H, C, K], <= 0 and 0 on padding; None for no decay.
      documents: None where all tokens are of the document that the state is of.
    """

    log_decay: jax.Array | None
    documents: Documents | None

    def pairs(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """A_ij of x, y [B, H, C, K] for j <= i, else 0: [B, H, C, C]."""
        g = self.log_decay
        if g is None:
            met = times(x, y.mT)
        elif g.shape[-1] == 1:
            after_j = jnp.tril(jnp.broadcast_to(g, (*g.shape[:-1], g.shape[-2])), -1)
            met = times(x, y.mT) * jnp.exp(times(_constant(np.tri(g.shape[-2]), g), after_j))
        else:
            met = _by_channel(x, y, g)
        met = jnp.tril(met)
        return met if self.documents is None else met * self.documents.pairs

    def earlier(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """As `pairs` for j < i, x_i being met before token i's own decay."""
        met = jnp.tril(_down(Chunk(self.log_decay, None).pairs(_up(x), y)), -1)
        return met if self.documents is None else met * self.documents.pairs

    def from_start(self, x: jax.Array) -> jax.Array:
        """x [B, H, C, K] as it meets the state at the chunk's start; 0 where a document has begun since."""
        x = x * self._decays(lambda size: np.tri(size))
        return x if self.documents is None else x * self.documents.start

    def before(self, x: jax.Array) -> jax.Array:
        """As `from_start`, before token i's own decay."""
        x = x * self._decays(lambda size: np.tri(size, k=-1))
        return x if self.documents is None else x * self.documents.start

    def to_end(self, y: jax.Array) -> jax.Array:
        """y [B, H, C, K] as the state at the chunk's end has it; 0 of documents that have ended."""
        y = y * self._decays(lambda size: np.tri(size, k=-1).T)
        return y if self.documents is None else y * self.documents.end

    def carry(self, state: jax.Array) -> jax.Array:
        """What is left of state [B, H, K, V] at the chunk's end."""
        if self.log_decay is not None:
            state = state * jnp.exp(self.log_decay.sum(-2))[..., None]
        return state if self.documents is None else state * self.documents.carry

    def _decays(self, which: Callable[[int], np.ndarray]) -> jax.Array | float:
        """exp of the sums over a row's tokens t of [C, C] ``which`` is 1 at."""
        g = self.log_decay
        return 1.0 if g is None else jnp.exp(times(_constant(which(g.shape[-2]), g), g))


Body = Callable[[Chunk, jax.Array, dict[str, jax.Array]], tuple[jax.Array, jax.Array]]


def over_chunks(
    body: Body,
    arrays: dict[str, jax.Array],
    log_decay: jax.Array | None,
    state: jax.Array,
    rows: Rows | None,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs ``body(chunk, state, arrays) -> (out, state)`` along rows, a chunk at a time.

    Backward, a chunk is computed again, so that of each only the state at its start is kept.

    Args:
      body: of a chunk's arrays [B, H, C, N], float32 at least, and states [B, H, K, V]; gives out [B, H, C, V].
      arrays: [B, L, G or H, N] by name; padding has 0 there.
      log_decay: [B, L, H, 1 or K]; None for no decay.
      state: [B, H, K, V], of the dtype that all is computed in.
      rows: padding and documents; None for neither.
      chunk: C; beyond 16, decays by channel take the next multiple of 16.

    Returns:
      out [B, L, H, V] and the state after the last token.
    """
    require(chunk > 0, f"chunk: expected a positive number of tokens, got {chunk}")
    kind, heads = state.dtype, state.shape[1]
    batch, length = next(iter(arrays.values())).shape[:2]
    size = min(chunk, length)
    if size > SUB and log_decay is not None and log_decay.shape[-1] > 1:
        size = -(-size // SUB) * SUB
    count = -(-length // size)
    given = arrays if log_decay is None else {**arrays, "log_decay": log_decay}
    epochs = None
    if rows is not None:
        given = {name: jnp.where(rows.real[..., None, None], x, 0) for name, x in given.items()}
        epoch = jnp.pad(rows.epoch, ((0, 0), (0, count * size - length)), mode="edge").reshape(batch, count, size)
        before = jnp.pad(epoch[:, :-1, -1], ((0, 0), (1, 0)))  # of the state at each chunk's start
        epochs = jnp.moveaxis(epoch, 1, 0), before.T

    def cut(x: jax.Array) -> jax.Array:
        """[B, L, ...] -> [chunks, B, C, ...]; what is added is as padding: it leaves the state as it is."""
        x = jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def step(state: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        each, marks = now
        each = {name: jnp.moveaxis(x.astype(kind), 1, 2) for name, x in each.items()}
        each = {name: jnp.repeat(x, heads // x.shape[1], 1) for name, x in each.items()}
        decay = each.pop("log_decay", None)
        out, state = body(Chunk(decay, None if marks is None else _documents(marks[0], marks[1], kind)), state, each)
        return state, jnp.moveaxis(out, 1, 2)

    state, out = jax.lax.scan(step, state, (jax.tree.map(cut, given), epochs))
    return jnp.moveaxis(out, 0, 1).reshape(batch, count * size, heads, -1)[:, :length], state


def over_tokens(
    body: Callable[[jax.Array, dict[str, jax.Array]], tuple[jax.Array, jax.Array]],
    arrays: dict[str, jax.Array],
    log_decay: jax.Array | None,
    state: jax.Array,
    rows: Rows | None,
) -> tuple[jax.Array, jax.Array]:
    """Runs ``body(state, arrays) -> (out [B, H, V], state)`` along rows, token after token.

    The arrays of a token are [B, H, N], among them ``fade`` = exp(log_decay), 1 on padding and for no decay; the state
    is 0 where a document begins. The arguments, but for ``body``, and what is returned are as of `over_chunks`.
    """
    kind, heads = state.dtype, state.shape[1]
    given = {name: jnp.repeat(x.astype(kind), heads // x.shape[2], 2) for name, x in arrays.items()}
    batch, length = next(iter(given.values())).shape[:2]
    fade = jnp.zeros((batch, length, heads, 1), kind) if log_decay is None else log_decay.astype(kind)
    begins = jnp.zeros((batch, length), bool)
    if rows is not None:
        given = {name: jnp.where(rows.real[..., None, None], x, 0) for name, x in given.items()}
        fade = jnp.where(rows.real[..., None, None], fade, 0)
        begins = jnp.diff(rows.epoch, axis=1, prepend=0) > 0

    def token(state: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        each, begins = now
        out, state = body(jnp.where(begins[:, None, None, None], 0, state), each)
        return state, out

    along = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), ({**given, "fade": jnp.exp(fade)}, begins))
    state, out = jax.lax.scan(token, state, along)
    return jnp.moveaxis(out, 0, 1), state


def first_state(state: jax.Array | None, like: jax.Array, v: jax.Array) -> jax.Array:
    """``state``, or zeros [B, H, K, V] for keys ``like`` and v; float32, or float64 for such keys."""
    kind = jnp.promote_types(like.dtype, jnp.float32)
    if state is None:
        return jnp.zeros((v.shape[0], v.shape[2], like.shape[-1], v.shape[-1]), kind)
    return state.astype(kind)


def times(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of matrices at the precision of its dtype: an error in a state is carried on along the row."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _documents(epoch: jax.Array, before: jax.Array, kind: Any) -> Documents:
    """Of a chunk of tokens of epochs [B, C], which a state of epochs ``before`` [B] is given to."""
    last = epoch[:, -1]
    return Documents(
        pairs=(epoch[:, None, :, None] == epoch[:, None, None, :]).astype(kind),
        start=(epoch == before[:, None])[:, None, :, None].astype(kind),
        end=(epoch == last[:, None])[:, None, :, None].astype(kind),
        carry=(last == before)[:, None, None, None].astype(kind),
    )


def _by_channel(x: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
    """`Chunk.pairs` where g is [..., C, K]; arbitrary for j > i."""
    *lead, length, width = x.shape
    size = min(SUB, length)
    count = length // size
    x, y, g = (jnp.broadcast_to(a, x.shape).reshape(*lead, count, size, width) for a in (x, y, g))
    inside = jnp.exp(times(_constant(_between(size, with_own=True), g), g))
    inside = inside.reshape(*lead, count, size, size, width)
    own = (x[..., :, None, :] * y[..., None, :, :] * inside).sum(-1)
    if count == 1:
        return own[..., 0, :, :]
    x = x * jnp.exp(times(_constant(np.tri(size), g), g))
    y = y * jnp.exp(times(_constant(np.tri(size, k=-1).T, g), g))
    whole = jnp.exp(times(_constant(_between(count, with_own=False), g), g.sum(-2)))  # of the sub-chunks between two
    whole = whole.reshape(*lead, count, count, 1, width)
    met = times(x, (whole * y[..., None, :, :, :]).reshape(*lead, count, length, width).mT)
    met = met.reshape(*lead, count, size, count, size)
    diagonal = np.eye(count, dtype=bool)[:, None, :, None]
    return jnp.where(diagonal, own[..., None, :], met).reshape(*lead, length, length)


@functools.cache
def _between(size: int, *, with_own: bool) -> np.ndarray:
    """[size * size, size]: 1 where t is between i and j, j < t < i, or t = i ``with_own``."""
    i, j, t = np.ogrid[:size, :size, :size]
    return ((j < t) & ((t <= i) if with_own else (t < i))).reshape(size * size, size)


def _constant(matrix: np.ndarray, like: jax.Array) -> jax.Array:
    return jnp.asarray(matrix, like.dtype)


def _up(x: jax.Array) -> jax.Array:
    """Rows moved up by one, 0 in the last."""
    return jnp.pad(x[..., 1:, :], (*((0, 0),) * (x.ndim - 2), (0, 1), (0, 0)))


def _down(x: jax.Array) -> jax.Array:
    return jnp.pad(x[..., :-1, :], (*((0, 0),) * (x.ndim - 2), (1, 0), (0, 0)))
