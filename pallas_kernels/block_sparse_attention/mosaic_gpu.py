"""Block-sparse attention for Hopper GPUs in Mosaic GPU: TMA, warp specialisation, `wgmma`.

A program owns 128 rows of the block map and has three warpgroups. One, the producer, gives its registers away and
issues the TMA copies of the tiles that the row's list names into a ring of buffers in shared memory; it reads the list
from device memory a ring ahead, so lists may be traced. Two consumers hold 64 rows each: scores by `wgmma` from shared
memory, base-2 online softmax and output in registers, weights from registers into the second `wgmma`. They take turns
(Shah et al. 2024, FlashAttention-3, section 3.1): while one does its softmax the other has the tensor cores, which at
head size 128 hides the exponentials, 16 a clock and multiprocessor, behind products that take as long.

Full tiles skip the mask by one branch that a whole warpgroup takes alike. Rows start longest list first, so that the
last programs to run are short ones. Backward is in `mosaic_gpu_backward`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.block_sparse_attention import core
from pallas_kernels.block_sparse_attention.core import Bias, BlockMask, Lists, Options, Request
from pallas_kernels.block_sparse_attention.mosaic_gpu_backward import backward
from pallas_kernels.block_sparse_attention.mosaic_gpu_tiles import (
    CONSUMER_REGISTERS,
    CONSUMERS,
    OWN_ROWS,
    PRODUCER_REGISTERS,
    ROW,
    WARPGROUP_ROWS,
    Ring,
    Sight,
    Walk,
    add_products,
    along,
    kernel,
    longest_first,
    matrices,
    own_rows,
    products,
    zeros,
)

__all__ = ["backward", "blocks", "forward", "supports"]

DTYPES = ("bfloat16", "float16")
WIDTHS = (64, 128)
CHIPS = ("H100", "H200", "H800", "H20")  # parts of the device kind


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    if not request.interpret and (request.platform != "gpu" or not any(chip in request.chip for chip in CHIPS)):
        return f"needs a Hopper GPU, not {request.chip or request.platform}"
    if request.interpret and not hasattr(plgpu, "InterpretGPUParams"):
        return "this version of jax cannot interpret Mosaic GPU kernels (0.11 can)"
    if request.dtype not in DTYPES:
        return f"dtype {request.dtype} is not one of {', '.join(DTYPES)}"
    if request.width not in WIDTHS or request.value_width not in WIDTHS:
        return f"head size {request.width} (values {request.value_width}) is not one of {WIDTHS}"
    if request.block_q % OWN_ROWS or request.block_k % OWN_ROWS:
        return f"blocks of {request.block_q} x {request.block_k} are not multiples of {OWN_ROWS}"
    if request.tables:
        return "the mask looks up tables, which a kernel cannot gather from"
    if request.bias == "trainable":
        return "the bias is trainable, and these kernels have no gradient for it"
    if request.bias == "tile":
        return "the bias has no form for kernels (Bias.at)"
    return None


def blocks(request: Request) -> tuple[int, int]:
    """The shape of a mask's tile that suits these kernels."""
    return OWN_ROWS, OWN_ROWS


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, bias: Bias | None, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The contract of `core`."""
    (batch, heads, length_q, width), value_width, dtype = q.shape, v.shape[-1], q.dtype
    group, tuned = heads // k.shape[1], dict(options.tuning)
    tile, stages = math.gcd(mask.block_k, tuned.get("forward_tile", 128)), tuned.get("forward_stages", 2)
    sight = Sight(mask, bias, options, turned=False)
    lists = Lists(*map(jnp.asarray, mask.rows))

    def body(
        q_ref, k_ref, v_ref, lists, order, refs, out_ref, lse_ref, q_smem, out_smem, stage, ready, keys, values, turn
    ):
        at, head, warpgroup = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("warpgroup")
        row, start = own_rows(order, at, head, lax.axis_index("rows"), mask.block_q)
        walk = Walk(lists, at, head, row, mask.block_k // tile, tile)
        tiles = walk.tiles()

        @pl.when(warpgroup == CONSUMERS)
        def _produce():
            plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
            key_head = lax.div(head, group)

            def fetch(t, _):
                slots = pl.ds(walk.entry(t).start, tile)
                keys.fill(t, k_ref.at[at, key_head, slots], *sight.columns(refs, at, head, slots))
                values.fill(t, v_ref.at[at, key_head, slots])

            lax.fori_loop(0, tiles, fetch, None)
            keys.drain(tiles)
            values.drain(tiles)

        @pl.when(warpgroup < CONSUMERS)
        def _consume():
            plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
            own_start = start + warpgroup * WARPGROUP_ROWS
            rows = pl.ds(own_start, WARPGROUP_ROWS)
            plgpu.copy_gmem_to_smem(q_ref.at[at, head, rows], q_smem.at[warpgroup], ready.at[warpgroup])
            lines = sight.rows(refs, at, head, rows)
            plgpu.barrier_wait(ready.at[warpgroup])

            def meet():
                plgpu.barrier_arrive(turn)
                plgpu.barrier_wait(turn)

            def step(t, carry):
                summed, top, total, kind = carry
                following, (k_tile, *columns), (v_tile,) = walk.entry(t + 1).kind, keys.read(t), values.read(t)
                (raw,) = products((q_smem.at[warpgroup], k_tile.T), meanwhile=meet)
                logits, _ = sight.logits(raw, refs, head, lines, columns, kind)
                keys.release(t)
                before, top = top, jnp.maximum(top, logits.max(1) * sight.factor)
                weights = jnp.exp2(logits * sight.factor - along(top, logits.shape, 0))
                fade = jnp.exp2(before - top)
                total = total * fade + weights.sum(1)
                summed = summed * along(fade, summed.shape, 0)
                # All of it before the other warpgroup gets its turn, for this one will then sit in a product.
                summed, total, top, weights = lax.optimization_barrier((summed, total, top, weights.astype(dtype)))
                plgpu.barrier_arrive(turn)
                values.wait(t)
                plgpu.barrier_wait(turn)
                staged = None if stage is None else stage.at[warpgroup]
                next_keys = lambda: pl.when(t + 1 < tiles)(lambda: keys.wait(t + 1))
                (summed,) = add_products((summed, weights, v_tile), stage=staged, meanwhile=next_keys)
                values.release(t)
                return summed, top, total, following

            vector = lambda value: plgpu.layout_cast(jnp.full((WARPGROUP_ROWS,), value, jnp.float32), ROW)
            pl.when(tiles > 0)(lambda: keys.wait(0))
            pl.when(warpgroup == 1)(meet)  # the second is one turn behind
            init = zeros(WARPGROUP_ROWS, value_width), vector(core.FLOOR), vector(0.0), walk.entry(0).kind
            summed, top, total, _ = lax.fori_loop(0, tiles, step, init)
            pl.when(warpgroup == 0)(meet)
            some = total > 0
            safe = jnp.where(some, total, 1.0)
            lse_ref.at[at, head, rows][...] = jnp.where(some, top / core.LOG2E + jnp.log(safe), -jnp.inf)
            out = q_smem if out_smem is None else out_smem
            out[warpgroup] = (summed * along(1 / safe, summed.shape, 0)).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out.at[warpgroup], out_ref.at[at, head, rows])
            plgpu.wait_smem_to_gmem(0)

    own = lambda columns: matrices(CONSUMERS, WARPGROUP_ROWS, columns, dtype=dtype)
    return tuple(
        kernel(
            body,
            "forward",
            options.interpret,
            out_type=[
                jax.ShapeDtypeStruct((*q.shape[:3], value_width), dtype),
                jax.ShapeDtypeStruct(q.shape[:3], jnp.float32),
            ],
            grid=(heads, length_q // OWN_ROWS, batch),
            grid_names=("heads", "rows", "batch"),
            scratch_types=[
                own(width),
                None if width == value_width else own(value_width),
                own(tile) if options.interpret else None,
                plgpu.Barrier(num_barriers=CONSUMERS),
                Ring.scratch(matrices(stages, tile, width, dtype=dtype), *sight.buffers(stages, tile)),
                Ring.scratch(matrices(stages, tile, value_width, dtype=dtype)),
                plgpu.Barrier(num_arrivals=CONSUMERS),
            ],
        )(q, k, v, lists, longest_first(lists.counts), sight.operands())
    )
