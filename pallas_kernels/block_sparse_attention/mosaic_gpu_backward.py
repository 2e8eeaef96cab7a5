"""The backward pass of `mosaic_gpu`: one kernel for dq, which walks rows, and one for dk and dv, which walks columns.

Seven products of tiles in place of the five that one kernel would need, but no atomic sums: gradients are the same in
every run. Both kernels have the forward one's three warpgroups, with tiles of 64 on the other side, since two
accumulators (dk, dv) or two score tiles (scores, d weights) share the registers. The kernel of columns holds its tiles
transposed, keys x queries, so that weights and score gradients go from registers into the products that sum dv and dk;
it walks the lists of all query heads that share its key head one after the other, and no gradient is summed later. At
head size 128 it leaves no register: weights wait for their gradient in half precision, delta enters as the start of the
sum it is taken from, and a soft cap (whose slope is one more tile) spills some 30 registers.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.block_sparse_attention import core
from pallas_kernels.block_sparse_attention.core import Bias, BlockMask, Lists, Options
from pallas_kernels.block_sparse_attention.mosaic_gpu_tiles import (
    COLUMN,
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
from pallas_kernels.compat import load_vector


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: BlockMask,
    bias: Bias | None,
    options: Options,
    lse: jax.Array,
    delta: jax.Array,
    dout: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """The contract of `core`, without the gradient of the bias."""
    lse = lse * core.LOG2E
    dq = _row_gradients(q, k, v, mask, bias, options, lse, delta, dout)
    if options.interpret:  # whose threads are few: one kernel at a time
        dq, lse = lax.optimization_barrier((dq, lse))
    dk, dv = _column_gradients(q, k, v, mask, bias, options, lse, delta, dout)
    return dq, dk, dv, None


def _row_gradients(q, k, v, mask, bias, options, lse, delta, dout):
    (batch, heads, length_q, width), value_width, dtype = q.shape, v.shape[-1], q.dtype
    group, tuned = heads // k.shape[1], dict(options.tuning)
    tile, stages = math.gcd(mask.block_k, tuned.get("dq_tile", 64)), tuned.get("dq_stages", 4)
    sight = Sight(mask, bias, options, turned=False)
    lists = Lists(*map(jnp.asarray, mask.rows))

    def body(
        q_ref, k_ref, v_ref, lse_ref, delta_ref, dout_ref, lists, order, refs, dq_ref,
        q_smem, dout_smem, stage, ready, keys, values,
    ):  # fmt: skip
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
            rows, mine = pl.ds(own_start, WARPGROUP_ROWS), ready.at[warpgroup]
            plgpu.copy_gmem_to_smem(q_ref.at[at, head, rows], q_smem.at[warpgroup], mine)
            plgpu.copy_gmem_to_smem(dout_ref.at[at, head, rows], dout_smem.at[warpgroup], mine)
            lines = sight.rows(refs, at, head, rows)
            own_lse, own_delta = (load_vector(ref.at[at, head, rows], ROW) for ref in (lse_ref, delta_ref))
            plgpu.barrier_wait(mine)

            def step(t, carry):
                dq, kind = carry
                following, (k_tile, *columns), (v_tile,) = walk.entry(t + 1).kind, keys.read(t), values.read(t)
                keys.wait(t)
                values.wait(t)
                raw, dweights = products((q_smem.at[warpgroup], k_tile.T), (dout_smem.at[warpgroup], v_tile.T))
                values.release(t)
                logits, slope = sight.logits(raw, refs, head, lines, columns, kind)
                weights = jnp.exp2(logits * sight.factor - along(own_lse, logits.shape, 0))
                dlogits = core.score_gradient(weights, dweights, along(own_delta, logits.shape, 0))
                dscores = dlogits if sight.plain else dlogits * slope
                staged = None if stage is None else stage.at[warpgroup]
                (dq,) = add_products((dq, dscores.astype(dtype), k_tile), stage=staged)
                keys.release(t)
                return dq, following

            dq, _ = lax.fori_loop(0, tiles, step, (zeros(WARPGROUP_ROWS, width), walk.entry(0).kind))
            q_smem[warpgroup] = (dq * options.scale if sight.plain else dq).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_smem.at[warpgroup], dq_ref.at[at, head, rows])
            plgpu.wait_smem_to_gmem(0)

    own = lambda columns: matrices(CONSUMERS, WARPGROUP_ROWS, columns, dtype=dtype)
    return kernel(
        body,
        "dq",
        options.interpret,
        out_type=jax.ShapeDtypeStruct(q.shape, dtype),
        grid=(heads, length_q // OWN_ROWS, batch),
        grid_names=("heads", "rows", "batch"),
        scratch_types=[
            own(width),
            own(value_width),
            own(tile) if options.interpret else None,
            plgpu.Barrier(num_barriers=CONSUMERS, num_arrivals=2),
            Ring.scratch(matrices(stages, tile, width, dtype=dtype), *sight.buffers(stages, tile)),
            Ring.scratch(matrices(stages, tile, value_width, dtype=dtype)),
        ],
    )(q, k, v, lse, delta, dout, lists, longest_first(lists.counts), sight.operands())


def _column_gradients(q, k, v, mask, bias, options, lse, delta, dout):
    (batch, groups, length_k, width), value_width, dtype = k.shape, v.shape[-1], q.dtype
    group, tuned = q.shape[1] // groups, dict(options.tuning)
    tile, stages = math.gcd(mask.block_q, tuned.get("dkv_tile", 64)), tuned.get("dkv_stages", 4)
    sight = Sight(mask, bias, options, turned=True)
    lists = Lists(*map(jnp.asarray, mask.columns))
    counts = lists.counts
    if counts.shape[1] > 1:
        counts = counts.reshape(counts.shape[0], groups, group, -1).sum(2)

    def body(
        q_ref, k_ref, v_ref, lse_ref, delta_ref, dout_ref, lists, order, refs, dk_ref, dv_ref,
        k_smem, v_smem, stage, ready, queries,
    ):  # fmt: skip
        at, key_head, warpgroup = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("warpgroup")
        column, start = own_rows(order, at, key_head, lax.axis_index("columns"), mask.block_k)
        walks = lambda r: Walk(lists, at, key_head * group + r, column, mask.block_q // tile, tile)

        @pl.when(warpgroup == CONSUMERS)
        def _produce():
            plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")

            def fetch_head(r, done):
                walk = walks(r)

                def fetch(t, _):
                    slots = pl.ds(walk.entry(t).start, tile)
                    sources = [ref.at[at, walk.head, slots] for ref in (q_ref, dout_ref, lse_ref, delta_ref)]
                    queries.fill(done + t, *sources, *sight.columns(refs, at, walk.head, slots))

                tiles = walk.tiles()
                lax.fori_loop(0, tiles, fetch, None)
                return done + tiles

            steps = lax.fori_loop(0, group, fetch_head, jnp.int32(0))
            queries.drain(steps)

        @pl.when(warpgroup < CONSUMERS)
        def _consume():
            plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
            own_start = start + warpgroup * WARPGROUP_ROWS
            rows, mine = pl.ds(own_start, WARPGROUP_ROWS), ready.at[warpgroup]
            plgpu.copy_gmem_to_smem(k_ref.at[at, key_head, rows], k_smem.at[warpgroup], mine)
            plgpu.copy_gmem_to_smem(v_ref.at[at, key_head, rows], v_smem.at[warpgroup], mine)
            plgpu.barrier_wait(mine)

            def meet_head(r, carry):
                walk = walks(r)
                lines = sight.rows(refs, at, walk.head, rows)
                *sums, done = carry

                def step(t, carry):
                    dk, dv, kind = carry
                    staged = None if stage is None else stage.at[warpgroup]
                    t, following = done + t, walk.entry(t + 1).kind
                    q_tile, dout_tile, lse_tile, delta_tile, *columns = queries.read(t)
                    queries.wait(t)
                    (raw,) = products((k_smem.at[warpgroup], q_tile.T))
                    logits, slope = sight.logits(raw, refs, walk.head, lines, columns, kind)
                    spread_lse = along(plgpu.layout_cast(lse_tile[...], COLUMN), logits.shape, 1)
                    weights = jnp.exp2(logits * sight.factor - spread_lse).astype(dtype)
                    minus_delta = along(-plgpu.layout_cast(delta_tile[...], COLUMN), logits.shape, 1)
                    dv, difference = add_products(
                        (dv, weights, dout_tile), (minus_delta, v_smem.at[warpgroup], dout_tile.T), stage=staged
                    )
                    dlogits = weights.astype(jnp.float32) * difference
                    dscores = dlogits if sight.plain else dlogits * slope
                    (dk,) = add_products((dk, dscores.astype(dtype), q_tile), stage=staged)
                    queries.release(t)
                    return dk, dv, following

                tiles = walk.tiles()
                dk, dv, _ = lax.fori_loop(0, tiles, step, (*sums, walk.entry(0).kind))
                return dk, dv, done + tiles

            init = zeros(WARPGROUP_ROWS, width), zeros(WARPGROUP_ROWS, value_width), jnp.int32(0)
            dk, dv, _ = lax.fori_loop(0, group, meet_head, init)
            k_smem[warpgroup] = (dk * options.scale if sight.plain else dk).astype(dtype)
            v_smem[warpgroup] = dv.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(k_smem.at[warpgroup], dk_ref.at[at, key_head, rows])
            plgpu.copy_smem_to_gmem(v_smem.at[warpgroup], dv_ref.at[at, key_head, rows])
            plgpu.wait_smem_to_gmem(0)

    own = lambda columns: matrices(CONSUMERS, WARPGROUP_ROWS, columns, dtype=dtype)
    return kernel(
        body,
        "dkv",
        options.interpret,
        out_type=[jax.ShapeDtypeStruct(x.shape, dtype) for x in (k, v)],
        grid=(groups, length_k // OWN_ROWS, batch),
        grid_names=("heads", "columns", "batch"),
        scratch_types=[
            own(width),
            own(value_width),
            own(tile) if options.interpret else None,
            plgpu.Barrier(num_barriers=CONSUMERS, num_arrivals=2),
            Ring.scratch(
                matrices(stages, tile, width, dtype=dtype),
                matrices(stages, tile, value_width, dtype=dtype),
                *(plgpu.SMEM((stages, tile), jnp.float32) for _ in range(2)),
                *sight.buffers(stages, tile),
            ),
        ],
    )(q, k, v, lse, delta, dout, lists, longest_first(counts), sight.operands())
