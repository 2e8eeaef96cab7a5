"""Landmark attention on TPU: the grid, operands and launch of block-sparse attention, over the causal tiles."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_attention import tpu as block_sparse
from pallas_kernels.block_sparse_attention.core import BlockMask, Options, Request
from pallas_kernels.block_sparse_attention.lists import both_ways
from pallas_kernels.block_sparse_attention.tpu import Call, Operand, fitting
from pallas_kernels.block_sparse_attention.tpu_kernels import LANES
from pallas_kernels.landmark_attention import core, tpu_kernels
from pallas_kernels.landmark_attention.core import Places

SUBLANES = 8
SIDE = 512


def supports(request: Request, period: int) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    block_q, block_k = blocks(request, period)
    if not request.interpret and (period % SUBLANES or block_k > 2 * SIDE):
        return f"blocks of {period} slots do not fill tiles of {SUBLANES} x {LANES}, as those of 64 or 128 do"
    rows, columns = -(-request.length_q // block_q), -(-request.length_k // block_k)
    widths = {"list_width": columns, "column_width": rows}
    return block_sparse.supports(dataclasses.replace(request, block_q=block_q, block_k=block_k, **widths))


def blocks(request: Request, period: int) -> tuple[int, int]:
    """The shape of a tile, whole blocks of keys."""
    side = fitting(request.length_k, SIDE)
    if request.interpret:
        return fitting(request.length_q, SIDE), core.tile(period, side)
    unit = math.lcm(period, LANES)
    return fitting(request.length_q, SIDE), max(1, side // unit) * unit


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, places: Places, options: Options, request: Request
) -> tuple[jax.Array, jax.Array]:
    """`core`'s forward."""
    mask = tiles(places, q.shape[2], k.shape[2], request)
    call = Call(q, k, v, mask, None, options, keys_still=False, name="landmark", keep=False)
    row = (1, mask.block_q), jnp.float32
    out = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), v.dtype)
    lse = jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[2]), jnp.float32)
    found = call.run(
        _bound(tpu_kernels.forward_kernel, places),
        products=2,
        ins={"q": call.queries(q), "k": call.keys(k), "v": call.keys(v)},
        outs={"out": call.queries(out), "lse": call.query_rows(lse)},
        scratch={"top": row, "total": row, "sums": ((v.shape[3], mask.block_q), jnp.float32)},
    )
    return found["out"], found["lse"][:, :, 0]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    places: Places,
    options: Options,
    request: Request,
    lse: jax.Array,
    delta: jax.Array,
    dout: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`core`'s backward; two kernels, one for dq, one for dk and dv."""
    mask = tiles(places, q.shape[2], k.shape[2], request)
    same = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    stats = jnp.stack([lse, delta], axis=2)

    def start(keys_still: bool) -> tuple[Call, dict[str, Operand]]:
        call = Call(q, k, v, mask, None, options, keys_still=keys_still, name="landmark", keep=False)
        ins = {"q": call.queries(q), "k": call.keys(k), "v": call.keys(v)}
        return call, ins | {"stats": call.query_rows(stats), "dout": call.queries(dout)}

    call, ins = start(keys_still=False)
    scratch = {"sums": ((q.shape[3], mask.block_q), jnp.float32)}
    outs = {"dq": call.queries(same(q))}
    dq = call.run(_bound(tpu_kernels.queries_kernel, places), 3, ins, outs, scratch)["dq"]
    call, ins = start(keys_still=True)
    outs = {"dk": call.keys(same(k)), "dv": call.keys(same(v))}
    scratch = {name: ((mask.block_k, x.array.shape[3]), jnp.float32) for name, x in outs.items()}
    grads = call.run(_bound(tpu_kernels.keys_kernel, places), 4, ins, outs, scratch)
    return dq, grads["dk"], grads["dv"]


def tiles(places: Places, length_q: int, length_k: int, request: Request) -> BlockMask:
    """The causal tiles; of kind 1 those whose blocks are all earlier than any of the row's queries.

    With slots that differ by sequence, a tile counts as the nearest one sees it. Which pairs of a tile are visible, the
    kernels find from ``places`` themselves.
    """
    block_q, block_k = request.block_q, request.block_k
    some, past = core.reach(places, length_q, length_k, block_q, block_k)
    ids = places.segments or (np.zeros((1, 0, length_q), np.int32), np.zeros((1, 0, length_k), np.int32))
    if places.segments is not None:
        ids = tuple(x[:, None] for x in ids)
    rows, columns = both_ways(some.any(0)[None, None], past.all(0)[None, None])
    positions = None
    if places.slots is not None:
        positions = places.slots, np.arange(length_k, dtype=np.int32)[None]
    return BlockMask(
        rows=rows,
        columns=columns,
        positions=positions,
        data=(ids[0][:, None], ids[1][:, None]),
        numbers=(),
        block_q=block_q,
        block_k=block_k,
        length_q=length_q,
        length_k=length_k,
        offset=places.offset,
    )


def _bound(kernel: Any, places: Places) -> Any:
    bound = functools.partial(kernel, places.period)
    return functools.update_wrapper(bound, kernel)
