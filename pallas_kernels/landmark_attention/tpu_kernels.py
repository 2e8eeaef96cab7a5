"""The three TPU kernels of landmark attention, as functions of one grid step.

They walk the causal tiles as block-sparse attention does (`block_sparse_attention.tpu_kernels`), with one difference:
in all three a tile is keys first, [blocks, period, queries], so that the sums over a block run along sublanes and all
that belongs to a query is a row. A tile whose blocks every query of its row has passed (kind 1) asks for no mask.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.block_sparse_attention.core import Softmax, scores
from pallas_kernels.block_sparse_attention.tpu_kernels import (
    Frame,
    Refs,
    Step,
    columns,
    dot,
    last_factor,
    step_of,
    visit,
)
from pallas_kernels.landmark_attention import core


def forward_kernel(period: int, frame: Frame, scalars: Refs, ins: Refs, outs: Refs, scratch: Refs) -> None:
    """out and lse of a block of queries. Scratch: top and total [1, bq], sums [V, bq]."""
    step = step_of(frame, scalars)

    @pl.when(step.first)
    def _() -> None:
        start = core.softmax_start(scratch["top"].shape)
        scratch["top"][...], scratch["total"][...] = start.top, start.total
        scratch["sums"][...] = jnp.zeros_like(scratch["sums"])

    def tile(past: bool) -> None:
        logits, _ = _scores(frame, ins, period)
        state = Softmax(scratch["top"][...][None], scratch["total"][...][None])
        if past:
            state, weights, fade = core.past_step(state, logits)
        else:
            state, weights, fade = core.softmax_step(state, logits, _kinds(frame, step, ins, period))
        scratch["top"][...], scratch["total"][...] = state.top[0], state.total[0]
        v = ins["v"][...]
        scratch["sums"][...] = scratch["sums"][...] * fade[0] + dot(v, _flat(weights).astype(v.dtype), 0, 0)

    visit(step, tile)

    @pl.when(step.last)
    def _() -> None:
        state = Softmax(scratch["top"][...][None], scratch["total"][...][None])
        out, lse = core.softmax_finish(state, scratch["sums"][...])
        outs["out"][...] = out.T.astype(outs["out"].dtype)
        outs["lse"][...] = lse


def queries_kernel(period: int, frame: Frame, scalars: Refs, ins: Refs, outs: Refs, scratch: Refs) -> None:
    """dq of a block of queries. Scratch: sums [K, bq]."""
    step = step_of(frame, scalars)

    @pl.when(step.first)
    def _() -> None:
        scratch["sums"][...] = jnp.zeros_like(scratch["sums"])

    def tile(past: bool) -> None:
        k = ins["k"][...]
        _, dscores = _gradients(frame, step, ins, period, past)
        scratch["sums"][...] += dot(k, dscores.astype(k.dtype), 0, 0)

    visit(step, tile)

    @pl.when(step.last)
    def _() -> None:
        outs["dq"][...] = (scratch["sums"][...] * last_factor(frame)).T.astype(outs["dq"].dtype)


def keys_kernel(period: int, frame: Frame, scalars: Refs, ins: Refs, outs: Refs, scratch: Refs) -> None:
    """dk and dv of a block of keys, summed over the query heads that share it. Scratch: dk [bk, K], dv [bk, V]."""
    step = step_of(frame, scalars)

    @pl.when(step.first)
    def _() -> None:
        for name in ("dk", "dv"):
            scratch[name][...] = jnp.zeros_like(scratch[name])

    def tile(past: bool) -> None:
        q, dout = ins["q"][...], ins["dout"][...]
        weights, dscores = _gradients(frame, step, ins, period, past)
        scratch["dv"][...] += dot(weights.astype(dout.dtype), dout, 1, 0)
        scratch["dk"][...] += dot(dscores.astype(q.dtype), q, 1, 0)

    visit(step, tile)

    @pl.when(step.last)
    def _() -> None:
        outs["dk"][...] = (scratch["dk"][...] * last_factor(frame)).astype(outs["dk"].dtype)
        outs["dv"][...] = scratch["dv"][...].astype(outs["dv"].dtype)


def _scores(frame: Frame, ins: Refs, period: int) -> tuple[jax.Array, Any]:
    """Base-2 logits [n, P, bq] of the tile, and their slope."""
    qk = dot(ins["k"][...], ins["q"][...], 1, 1)
    return scores(qk.reshape(-1, period, qk.shape[1]), frame.options)


def _gradients(frame: Frame, step: Step, ins: Refs, period: int, past: bool) -> tuple[jax.Array, jax.Array]:
    """The weights of the tile's values and d loss / d (q k^T) but for `last_factor`, both [bk, bq]."""
    logits, slope = _scores(frame, ins, period)
    dweights = dot(ins["v"][...], ins["dout"][...], 1, 1).reshape(logits.shape)
    lse, delta = (ins["stats"][i : i + 1, :][None] for i in range(2))
    if past:
        weights, dlogits = core.past_gradients(logits, lse, dweights, delta)
    else:
        weights, dlogits = core.gradients(logits, _kinds(frame, step, ins, period), lse, dweights, delta)
    return _flat(weights), _flat(dlogits * slope if frame.options.soft_cap else dlogits)


def _kinds(frame: Frame, step: Step, ins: Refs, period: int) -> core.Kinds:
    blocks, queries = frame.block_k // period, frame.block_q
    block_k = step.start_k // period + jax.lax.broadcasted_iota(jnp.int32, (blocks, 1, 1), 0)
    within = jax.lax.broadcasted_iota(jnp.int32, (1, period, 1), 1)
    rows = [ins["tokens_q"][i : i + 1, :][None] for i in range(ins["tokens_q"].shape[0])] if "tokens_q" in ins else []
    if frame.explicit:
        slot_q, *rows = rows
    else:
        slot_q = step.start_q + frame.offset + jax.lax.broadcasted_iota(jnp.int32, (1, 1, queries), 2)
    if not rows:
        return core.kinds(slot_q, block_k, within, period)
    last = ins["tokens_k"].shape[0] - 1
    segments = columns(ins["tokens_k"][last : last + 1, :])[:, :1].reshape(blocks, period, 1)
    return core.kinds(slot_q, block_k, within, period, rows[0], segments)


def _flat(x: jax.Array) -> jax.Array:
    """[n, P, bq] -> [bk, bq]."""
    return x.reshape(-1, x.shape[-1])
