"""What Triton-style attention kernels share: when they serve, their grid, their operands and their products.

A program owns one tile of queries, for one query head, and meets keys; or (``columns``) one tile of keys, for one key
head and the ``group`` of query heads that share it, and meets queries. The last rows start first: under a causal mask
they are the longest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.block_sparse_attention.core import Options, Request

DTYPES = ("float32", "bfloat16", "float16")
LEAST_TILE = 16  # of a matrix product
WIDEST = 256

Operand = tuple[Any, pl.BlockSpec]  # an array or its shape, and the block of it that a program sees


def refused(request: Request) -> str | None:
    """Why no such kernel can serve ``request``, whatever its tiles, or None."""
    if request.platform != "gpu" and not request.interpret:
        return f"needs a GPU, not {request.platform}"
    if request.dtype not in DTYPES:
        return f"dtype {request.dtype} is not one of {', '.join(DTYPES)}"
    if max(request.width, request.value_width) > WIDEST:
        return f"head size {max(request.width, request.value_width)} is over {WIDEST}"
    return None


def widen(x: jax.Array) -> jax.Array:
    """Zeros behind each row of ``x``, up to a power of two: Triton's tiles know no other sizes."""
    width = x.shape[-1]
    return jnp.pad(x, [(0, 0)] * 3 + [(0, max(LEAST_TILE, 1 << (width - 1).bit_length()) - width)])


def vector(x: Any) -> jax.ShapeDtypeStruct:
    """Of a number for each row of ``x`` [B, H, L, K]."""
    return jax.ShapeDtypeStruct(x.shape[:3], jnp.float32)


class Program:
    """A kernel's grid, its operands as (array, block) pairs, its launch, and its products.

    Args:
      q, k: [B, H, Lq, K], [B, G, Lk, K], `widen`-ed.
      options: of the call.
      columns: see above.
      tile: length of the program's own tile, which divides its array's; ``other_tile``: of those it meets.
      warps, stages: of the compiler.
    """

    name = ""  # of the operation, for profiles

    def __init__(
        self, q: Any, k: Any, options: Options, columns: bool, tile: int, other_tile: int, warps: int, stages: int
    ) -> None:
        self.options, self.columns, self.tile, self.other_tile = options, columns, tile, other_tile
        self.group, self.width = q.shape[1] // k.shape[1], q.shape[-1]
        # Float32 as three products of its TF32 halves: a tensor core's speed at nearly float32's precision.
        exact = lax.Precision.HIGHEST if options.interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        self.precision = exact if q.dtype == jnp.float32 else None
        self.tile_q, self.tile_k = (other_tile, tile) if columns else (tile, other_tile)
        owner = k if columns else q
        self.grid = (owner.shape[2] // tile, owner.shape[1], q.shape[0])
        self.params = plt.CompilerParams(num_warps=warps, num_stages=stages)

    def tiles(self, x: Any) -> Operand:
        """The program's own tile of ``x`` [B, heads, length, ...]."""
        zeros = (0,) * (x.ndim - 3)
        shape = (None, None, self.tile, *x.shape[3:])
        return x, pl.BlockSpec(shape, lambda i, h, b: (b, h, self._number(i), *zeros))

    def whole(self, x: Any) -> Operand:
        """All of the head of keys (of the heads of queries, one more axis) that the program meets."""
        zeros = (0,) * (x.ndim - 2)
        if self.columns:
            return x, pl.BlockSpec((None, self.group, *x.shape[2:]), lambda i, h, b: (b, h, *zeros))
        return x, pl.BlockSpec((None, None, *x.shape[2:]), lambda i, h, b: (b, lax.div(h, self.group), *zeros))

    def spread(self, x: jax.Array) -> pl.BlockSpec:
        """A block with all of ``x`` [1 or B, 1 or H, ...] that is of the program's row and heads."""
        rows, heads = x.shape[:2]
        zeros = (0,) * (x.ndim - 2)
        shape = (None, self.group if self.columns and heads > 1 else 1, *x.shape[2:])
        return pl.BlockSpec(shape, lambda i, h, b: (b if rows > 1 else 0, h if heads > 1 else 0, *zeros))

    def launch(
        self,
        kernel: Callable[..., None],
        name: str,
        products: int,
        pairs: float,
        operands: list[Operand],
        rest: tuple[Any, ...],
        outs: list[Operand],
    ) -> Any:
        """Runs ``kernel(*operands, *rest, *outs)``, each as references.

        Args:
          kernel: the body of a program; ``name``: its own part of the kernel's name.
          products: matrix products of a pair of tiles.
          pairs: of positions that a program computes, on average.
          operands, outs: see `tiles` and `whole`.
          rest: pytrees of arrays, all of which are `spread`.
        """
        pairs = int(math.prod(self.grid) * self.group ** int(self.columns) * pairs)
        arrays = [x for x, _ in (*operands, *outs)]
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[*(spec for _, spec in operands), *jax.tree.map(self.spread, rest)],
            out_specs=[spec for _, spec in outs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outs],
            compiler_params=self.params,
            cost_estimate=pl.CostEstimate(
                flops=2 * products * pairs * self.width,
                transcendentals=pairs,
                bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
            ),
            interpret=bool(self.options.interpret),
            name=f"{self.name}_{name}",
        )(*(x for x, _ in operands), *rest)

    def start(self) -> jax.Array:
        """The slot at which the program's own tile begins."""
        return self._number(pl.program_id(0)) * self.tile

    def _number(self, i: Any) -> Any:
        return i if self.columns else self.grid[0] - 1 - i

    def dot(self, a: jax.Array, b: jax.Array, trans_a: bool = False, trans_b: bool = False) -> jax.Array:
        """The product of two tiles, float32."""
        return plt.dot(a, b, trans_a=trans_a, trans_b=trans_b, precision=self.precision)
