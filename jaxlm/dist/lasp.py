"""LASP-2: linear recurrences over rows that are split over devices (Sun et al. 2025, Rethinking LASP).

Each device runs the recurrence over its piece of the row from a state of zero, and finds what the piece would do to a
state that came in: as everything is linear in the state, a matrix M_i beside the piece's own N_i. One all-gather of
(N, M), whose size does not depend on the length, tells each device what comes in,

    S_i = M_{i-1} S_{i-1} + N_{i-1}        o_t = (its own) + r_t^T S_i

Where the decay is a diagonal, M and r have a closed form (`jaxlm.ops.passing`). In general (the delta rule) they are
had from the recurrence itself: as many values as the keys are wide are added, all zero, and begin at the unit matrix.
`in_pieces` is the scheme for recurrences whose states are put together in another way (xLSTM's).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlm.dist.rules import active_mesh
from jaxlm.ops.causal_conv import causal_conv
from jaxlm.ops.passing import passing
from jaxlm.ops.segments import Rows

AXIS = "context"


def lasp(
    op: Callable[..., tuple[jax.Array, jax.Array]],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *others: jax.Array | None,
    rows: Rows | None,
    state: jax.Array | None,
    diagonal: bool,
) -> tuple[jax.Array, jax.Array]:
    """``op(q, k, v, *others, rows=rows, state=state)``, each device of the mesh's context axis with its piece of the
    rows; as it is without a mesh, with one piece, or where the pieces would not be equal.

    Args:
      op: a recurrence of `jaxlm.ops`, linear in values and state; returns outputs [B, L, H, V] and the state.
      q, k: [B, L, G, K].
      v: [B, L, H, V].
      others: further arguments; arrays [B, L, ...] are split, smaller ones are not.
      rows, state: as ``op`` takes them; state float32 [B, H, K, V].
      diagonal: ``others`` is at most a log decay, as `jaxlm.ops.passing.passing` takes it, and a token reads the state
        that it has decayed and added to.
    """
    if not divided(q.shape[1]):
        return op(q, k, v, *others, rows=rows, state=state)
    run = _diagonal if diagonal else _general
    width = v.shape[-1]

    def pass_on(state: jax.Array, end: jax.Array) -> jax.Array:
        added, through = end[..., :width], end[..., width:]
        return added + (through * state if diagonal else jnp.matmul(through, state, precision="highest"))

    def add(own: tuple[jax.Array, jax.Array], state: jax.Array) -> jax.Array:
        out, reading = own
        return out + jnp.einsum("blhk,bhkv->blhv", reading, state).astype(out.dtype)

    start = jnp.zeros((v.shape[0], v.shape[2], q.shape[3], width), jnp.float32) if state is None else state
    return in_pieces(functools.partial(run, op), pass_on, add, (q, k, v, *others), rows, start)


def divided(length: int) -> bool:
    """Whether the mesh in use splits rows of ``length`` tokens into equal pieces."""
    mesh = active_mesh()
    return mesh is not None and mesh.shape[AXIS] > 1 and length % mesh.shape[AXIS] == 0


def in_pieces(
    run: Callable[[tuple[Any, ...], Rows | None], tuple[Any, jax.Array]],
    pass_on: Callable[[Any, jax.Array], Any],
    add: Callable[[Any, Any], jax.Array],
    tokens: tuple[Any, ...],
    rows: Rows | None,
    start: Any,
) -> tuple[jax.Array, Any]:
    """A recurrence over rows that the mesh in use splits (`divided`), with one all-gather of ``run``'s second result.

    Args:
      run: from a piece's tokens and rows, what it makes by itself, and one array that says what it does to a state.
      pass_on: from the state before a piece and that array, the state after it.
      add: from what a piece made and the state before it, its outputs [B, l, ...].
      tokens: arrays [B, L, ...], which are split, and smaller ones or None, which are not.
      rows: padding and documents; None for neither.
      start: the state before the row, a tree of arrays.

    Returns the outputs, split as the tokens are, and the state after the row, which all devices have.
    """
    length = tokens[0].shape[1]
    marks = None if rows is None else (rows.real, jnp.diff(rows.epoch, axis=1, prepend=0) > 0)

    def piece(tokens: tuple[Any, ...], marks: Any, start: Any) -> tuple[jax.Array, Any]:
        own = None if marks is None else Rows(marks[0], jnp.cumsum(marks[1], 1, dtype=jnp.int32))
        made, end = run(tokens, own)
        final, incoming = jax.lax.scan(lambda s, end: (pass_on(s, end), s), start, jax.lax.all_gather(end, AXIS))
        here = jax.lax.axis_index(AXIS)
        mine = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, here, 0, keepdims=False), incoming)
        return add(made, mine), final

    split = lambda x: PartitionSpec(None, AXIS) if x.ndim > 1 and x.shape[1] == length else PartitionSpec()
    placed: Any = jax.shard_map(
        piece,
        mesh=active_mesh(),
        in_specs=(jax.tree.map(split, tokens), jax.tree.map(split, marks), PartitionSpec()),
        out_specs=(PartitionSpec(None, AXIS), PartitionSpec()),
        check_vma=False,
        axis_names={AXIS},
    )
    return placed(tokens, marks, start)


def convolve(x: jax.Array, taps: jax.Array) -> jax.Array:
    """`causal_conv` of x [B, L, ...] with taps [n, ...], one document a row, each device of the context axis with its
    piece, for which it is sent the last n - 1 tokens of the piece before."""
    mesh, length, more = active_mesh(), x.shape[1], taps.shape[0] - 1
    pieces = 1 if mesh is None else mesh.shape[AXIS]
    if pieces == 1 or length % pieces or not 0 < more <= length // pieces:
        return causal_conv(x, taps)[0]

    def piece(x: jax.Array, taps: jax.Array) -> jax.Array:
        before = jax.lax.ppermute(x[:, -more:], AXIS, [(i, i + 1) for i in range(pieces - 1)])  # zeros for the first
        return causal_conv(jnp.concatenate((before, x), 1), taps)[0][:, more:]

    split = PartitionSpec(None, AXIS)
    run: Any = jax.shard_map(
        piece, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False, axis_names={AXIS}
    )
    return run(x, taps)


def _diagonal(
    op: Callable[..., tuple[jax.Array, jax.Array]], tokens: tuple[Any, ...], rows: Rows | None
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """(Outputs, what reads the state that comes in), and [N | m] of one piece."""
    q, _, v, *decay = tokens
    out, own = op(*tokens, rows=rows, state=None)
    reading, left = passing(q, v.shape[2], decay[0] if decay else None, rows)
    return (out, reading), jnp.concatenate((own, left[..., None]), -1)


def _general(
    op: Callable[..., tuple[jax.Array, jax.Array]], tokens: tuple[Any, ...], rows: Rows | None
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """The same with [N | M]."""
    q, k, v, *others = tokens
    (batch, length, heads, width), keys = v.shape, q.shape[-1]
    values = jnp.concatenate((v, jnp.zeros((batch, length, heads, keys), v.dtype)), -1)
    unit = jnp.broadcast_to(jnp.eye(keys, width + keys, width), (batch, heads, keys, width + keys))
    out, end = op(q, k, values, *others, rows=rows, state=unit)
    return (out[..., :width], out[..., width:].astype(jnp.float32)), end
