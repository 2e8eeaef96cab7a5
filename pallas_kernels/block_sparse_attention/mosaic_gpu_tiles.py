"""What the Mosaic GPU kernels share: their form, products of tiles, the walk of a list, what a mask sees of a tile.

A warpgroup holds a tile of 64 rows in the layout in which `wgmma` leaves its results; a vector of a tile's rows (ROW)
or of its columns (COLUMN) lies so that it spreads over the tile without a move between threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.block_sparse_attention import core
from pallas_kernels.block_sparse_attention.core import Bias, BlockMask, Lists, Options
from pallas_kernels.compat import load_vector

WARPGROUP_ROWS = 64  # of one wgmma
CONSUMERS = 2  # warpgroups that compute; one more fetches
OWN_ROWS = CONSUMERS * WARPGROUP_ROWS  # of a program
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 24, 240  # a thread's; together 504 of the 512 there are

TILE = plgpu.Layout.WGMMA
ROW, COLUMN = TILE.reduce(1), TILE.reduce(0)


def matrices(*shape: int, dtype: Any) -> Any:
    """Shared memory for matrices as TMA writes and `wgmma` reads them: rows of 128 bytes, swizzled."""
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))


def kernel(body: Callable[..., None], name: str, interpret: Any, **arguments: Any) -> Callable[..., Any]:
    """`plgpu.kernel` of `CONSUMERS` + 1 warpgroups, along the axis "warpgroup"."""
    body.__name__ = f"block_sparse_attention_{name}"
    if interpret is True:
        interpret = plgpu.InterpretGPUParams()
    return plgpu.kernel(
        body,
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        **({"interpret": interpret} if interpret else {}),
        **arguments,
    )


def products(*pairs: tuple[Any, Any], meanwhile: Callable[[], None] = lambda: None) -> list[jax.Array]:
    """left @ right, float32, of pairs of matrices in shared memory; ``meanwhile`` runs while they are computed."""

    def run(*sums):
        for total, (left, right) in zip(sums, pairs, strict=True):
            plgpu.wgmma(total, left, right)
        meanwhile()
        return [total[...] for total in sums]

    return pl.run_scoped(run, *(plgpu.ACC((left.shape[0], right.shape[1]), jnp.float32) for left, right in pairs))


def add_products(
    *sums: tuple[jax.Array, Any, Any], stage: Any, meanwhile: Callable[[], None] = lambda: None
) -> list[jax.Array]:
    """total + left @ right of triples of them, with the first left factor in registers, all else in shared memory.

    Interpreters want that left factor in shared memory too: ``stage``, which is None on the machine.
    """
    totals, lefts, rights = zip(*sums, strict=True)
    if stage is not None:
        stage[...] = lefts[0]
        plgpu.commit_smem()
        added = products(*zip((stage, *lefts[1:]), rights, strict=True), meanwhile=meanwhile)
        return [total + more for total, more in zip(totals, added, strict=True)]

    def run(totals):
        for total, left, right in zip(totals, lefts, rights, strict=True):
            plgpu.wgmma(total, left, right)
        meanwhile()

    return pl.run_state(run)([plgpu.ACC.init(total) for total in totals])


def zeros(*shape: int) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), TILE)


def along(vector: jax.Array, shape: tuple[int, int], axis: int) -> jax.Array:
    """A vector of a tile's rows (axis 0) or columns (1), over the whole tile."""
    return lax.broadcast_in_dim(vector, shape, [axis])


class Ring(NamedTuple):
    """Buffers in shared memory, filled in turn by the producer and read by the consumers, step after step.

    Attributes:
      buffers: [stages, ...], filled together.
      ready, free: a barrier for each stage.
    """

    buffers: list[Any]
    ready: Any
    free: Any

    @classmethod
    def scratch(cls, *buffers: Any) -> Ring:
        """What to ask of `kernel` as scratch."""
        stages = buffers[0].shape[0]
        return cls(
            list(buffers),
            plgpu.Barrier(num_barriers=stages, num_arrivals=len(buffers)),
            plgpu.Barrier(num_barriers=stages, num_arrivals=CONSUMERS),
        )

    def slot(self, step: Any) -> Any:
        return lax.rem(step, self.buffers[0].shape[0])

    def fill(self, step: Any, *sources: Any) -> None:
        slot = self.slot(step)
        pl.when(step >= self.buffers[0].shape[0])(lambda: plgpu.barrier_wait(self.free.at[slot]))
        for source, buffer in zip(sources, self.buffers, strict=True):
            plgpu.copy_gmem_to_smem(source, buffer.at[slot], self.ready.at[slot])

    def drain(self, steps: Any) -> None:
        """Ends ``steps`` calls of `fill`: who waits for a barrier has to see all of its phases."""
        first = lax.max(steps - self.buffers[0].shape[0], 0)
        lax.fori_loop(first, steps, lambda step, _: plgpu.barrier_wait(self.free.at[self.slot(step)]), None)

    def wait(self, step: Any) -> None:
        plgpu.barrier_wait(self.ready.at[self.slot(step)])

    def read(self, step: Any) -> list[Any]:
        return [buffer.at[self.slot(step)] for buffer in self.buffers]

    def release(self, step: Any) -> None:
        plgpu.barrier_arrive(self.free.at[self.slot(step)])


class Entry(NamedTuple):
    """A tile that a list names: the slot at which it begins, and its kind."""

    start: jax.Array
    kind: jax.Array


class Walk(NamedTuple):
    """The list of one row (column) of the block map, cut into tiles of ``size`` rows that divide its blocks.

    Attributes:
      lists: references [1 or B, 1 or H, rows, ...].
      parts: tiles in a block.
    """

    lists: Lists
    batch: Any
    head: Any
    row: Any
    parts: int
    size: int

    def _at(self, x: Any) -> tuple[Any, Any, Any]:
        return self.batch if x.shape[0] > 1 else 0, self.head if x.shape[1] > 1 else 0, self.row

    def tiles(self) -> jax.Array:
        return self.lists.counts[self._at(self.lists.counts)] * self.parts

    def entry(self, t: Any) -> Entry:
        """The t-th tile; beyond the last one, some tile."""
        j, part = (t, 0) if self.parts == 1 else (lax.div(t, self.parts), lax.rem(t, self.parts))
        at = *self._at(self.lists.indices), lax.min(j, self.lists.indices.shape[-1] - 1)
        return Entry((self.lists.indices[at] * self.parts + part) * self.size, self.lists.kinds[at])


class Sight:
    """The logits of a tile: bias, soft cap and what the mask hides.

    A mask's lines are the positions of the queries or of the keys and its data, an int32 array each. A program reads
    those of its rows from device memory, once; those of the columns that it walks over come with the tiles, through
    shared memory. (Counting positions in registers was tried: compilers lift the counts out of the loop, and the kernel
    of dk and dv has no register left for them.)

    Attributes:
      factor: times the logits, it makes the base-2 logits. It stays outside, for a product and a difference are one
        instruction; 1 where there is more to do than to scale.

    Args:
      turned: tiles are keys x queries, not queries x keys.
    """

    def __init__(self, mask: BlockMask, bias: Bias | None, options: Options, turned: bool) -> None:
        self.mask, self.bias, self.options, self.turned = mask, bias, options, turned
        self.plain = bias is None and not options.soft_cap and options.scale > 0
        self.factor = options.scale * core.LOG2E if self.plain else 1.0

    def operands(self) -> dict[str, Any]:
        """Arrays that a kernel has to hand to the other methods, as references; lines are [1 or B, 1 or H, L]."""
        data, positions = [jnp.asarray(x) for x in self.mask.data], self.mask.positions
        if positions is None:
            positions = [
                jnp.arange(x.shape[-1])[None] + shift for x, shift in zip(data, (self.mask.offset, 0), strict=True)
            ]
        of_q, of_k = (
            [jnp.asarray(x, jnp.int32)[:, None], *(more[:, :, i] for i in range(more.shape[2]))]
            for x, more in zip(positions, data, strict=True)
        )
        return {
            "rows": of_k if self.turned else of_q,
            "columns": of_q if self.turned else of_k,
            "numbers": [jnp.asarray(x).reshape(1) for x in self.mask.numbers],
            "bias": None if self.bias is None else self.bias.numbers,
        }

    def buffers(self, stages: int, size: int) -> list[Any]:
        """Shared memory for the lines of ``size`` columns."""
        count = 1 + self.mask.data[0 if self.turned else 1].shape[2]
        return [plgpu.SMEM((stages, size), jnp.int32) for _ in range(count)]

    def columns(self, refs: dict[str, Any], batch: Any, head: Any, slots: Any) -> list[Any]:
        """What to copy into them."""
        return [_line(ref, batch, head, slots) for ref in refs["columns"]]

    def rows(self, refs: dict[str, Any], batch: Any, head: Any, slots: Any) -> list[jax.Array]:
        """The lines of the program's own rows."""
        return [load_vector(_line(ref, batch, head, slots), ROW) for ref in refs["rows"]]

    def logits(
        self, raw: jax.Array, refs: dict[str, Any], head: Any, rows: list[Any], columns: list[Any], kind: jax.Array
    ) -> tuple[jax.Array, jax.Array | float]:
        """Logits of a tile from its products of queries and keys, and their slope (`core.scores`).

        Args:
          rows: vectors, as `rows` returns them; columns: the filled `buffers`.
        """
        shape, logits, slope = raw.shape, raw, self.options.scale

        def spread():
            """The lines of queries and of keys, each over the whole tile."""
            over_rows = [along(x, shape, 0) for x in rows]
            over_columns = [along(plgpu.layout_cast(x[...], COLUMN), shape, 1) for x in columns]
            return (over_columns, over_rows) if self.turned else (over_rows, over_columns)

        if not self.plain:
            bias = None
            if self.bias is not None:
                (pos_q, *_), (pos_k, *_) = spread()
                numbers = tuple(refs["bias"][head, i] for i in range(refs["bias"].shape[1]))
                bias = self.bias.at(numbers, pos_q, pos_k)
            logits, slope = core.scores(raw, self.options, bias)

        def hide(logits):
            (pos_q, *data_q), (pos_k, *data_k) = spread()
            numbers = tuple(x[0] for x in refs["numbers"])
            seen = self.mask.see(numbers, pos_q, pos_k, tuple(data_q), tuple(data_k), kind)
            return jnp.where(seen, logits, core.NEVER / self.factor)

        return lax.cond(kind & 1, lambda logits: logits, hide, logits), slope


def _line(ref: Any, batch: Any, head: Any, slots: Any) -> Any:
    return ref.at[batch if ref.shape[0] > 1 else 0, head if ref.shape[1] > 1 else 0, slots]


def longest_first(counts: jax.Array) -> jax.Array:
    """The rows of maps [1 or B, 1 or H, rows] by the length of their lists, the longest first."""
    return jnp.argsort(-counts, axis=-1, stable=True).astype(jnp.int32)


def own_rows(order: Any, batch: Any, head: Any, i: Any, block: int) -> tuple[jax.Array, jax.Array]:
    """The row of the block map that the i-th program works on, and the slot at which its `OWN_ROWS` begin."""
    programs = block // OWN_ROWS
    row = order[batch if order.shape[0] > 1 else 0, head if order.shape[1] > 1 else 0, lax.div(i, programs)]
    return row, row * block + lax.rem(i, programs) * OWN_ROWS
