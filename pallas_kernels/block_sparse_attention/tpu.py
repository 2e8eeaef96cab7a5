"""Block-sparse attention on TPU: Pallas kernels whose grid walks the live tiles only.

The lists of a mask become one sequence of steps in scalar memory (`tpu_steps`), prefetched before the grid starts, so
that the pipeline copies exactly the blocks that are met; traced masks run the same kernels under a grid of traced
length. The kernels themselves are in `tpu_kernels`. Keys and values are never repeated for grouped queries, and what
belongs to a query (log-sum-exp, delta, positions) lies in memory as rows, 4 bytes a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_sparse_attention import tpu_kernels
from pallas_kernels.block_sparse_attention.core import Bias, BlockMask, Options, Request
from pallas_kernels.block_sparse_attention.tpu_kernels import LANES, Frame, Walk
from pallas_kernels.block_sparse_attention.tpu_parts import in_parts, memory_of, parts_of
from pallas_kernels.block_sparse_attention.tpu_steps import Fields, most_tiles, steps_of

DTYPES = ("float32", "bfloat16")  # Mosaic cannot load float16 vectors
WIDEST = 256
CHIPS_WITHOUT_ROOM = ("TPU v2", "TPU v3")  # 16 KiB of scalar memory
SCALAR_MEMORY = 960 * 2**10  # bytes for the words of the steps, of 1 MiB
MOST_DATA = 32  # numbers of a mask per token
LARGEST_TILE = 2**20  # scores
FAST_MEMORY = 32 * 2**20  # bytes a kernel may take; chips have 64 MiB and more, but v4 16


def blocks(request: Request) -> tuple[int, int]:
    """The shape of a mask's tile that suits these kernels.

    From the bundles of the compiled schedules (experiments/aot/bundles.py), cycles if nothing stalls. Per score and in
    bfloat16, tiles of 1024 x 1024 take a third fewer than tiles of 512 x 512 on chips with matrix units of 256 x
    256 (v6e, TPU7x) and an eighth fewer on those with 128 x 128, which such tiles lose again on a window of 1024.
    """
    side = 512 if request.dtype == "float32" or request.width > LANES or _small_units(request.chip) else 1024
    if request.grain:
        side = max(LANES, math.gcd(side, request.grain))
    return fitting(request.length_q, side), fitting(request.length_k, side)


def supports(request: Request) -> str | None:
    """Why these kernels cannot serve ``request``, or None."""
    r = request
    if r.platform != "tpu" and not r.interpret:
        return f"needs a TPU, not {r.platform}"
    if r.chip in CHIPS_WITHOUT_ROOM:
        return f"{r.chip} has too little scalar memory for lists of blocks"
    if r.dtype not in DTYPES:
        return f"dtype {r.dtype} is not one of {', '.join(DTYPES)}"
    if max(r.width, r.value_width) > WIDEST:
        return f"head size {max(r.width, r.value_width)} is over {WIDEST}"
    if not r.interpret and (r.block_q % LANES or r.block_k % LANES):
        return f"blocks of {r.block_q} x {r.block_k} are not multiples of {LANES}"
    if r.block_q * r.block_k > LARGEST_TILE:
        return f"blocks of {r.block_q} x {r.block_k} are over {LARGEST_TILE} scores"
    if max(r.data_q, r.data_k) > MOST_DATA:
        return f"the mask has {max(r.data_q, r.data_k)} numbers per token, more than {MOST_DATA}"
    if r.tables:
        return "the mask looks up tables, which a kernel cannot gather from"
    if r.bias == "tile":
        return "the bias has no form for kernels (Bias.at)"
    if not r.block_q:
        return None
    rows, columns = -(-r.length_q // r.block_q), -(-r.length_k // r.block_k)
    shares = r.heads // r.groups if r.own_lists else 1
    tiles = r.tiles or min(rows * r.list_width, columns * r.column_width)
    need = memory_of(shares * tiles, max(rows, columns))
    if need > SCALAR_MEMORY or Fields.of(columns, shares, rows).bits > 31:
        return f"lists of {need} bytes exceed the {SCALAR_MEMORY} of scalar memory; larger blocks have shorter lists"
    return None


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, bias: Bias | None, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The contract of `core`."""

    def run(arrays: list[jax.Array], mask: BlockMask, bias: Bias | None) -> list[jax.Array]:
        q, k, v = arrays
        call = Call(q, k, v, mask, bias, options, keys_still=False)
        batch, heads, length, _ = q.shape
        out = jax.ShapeDtypeStruct((batch, heads, length, v.shape[3]), v.dtype)
        lse = jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32)
        state = (mask.block_q, math.gcd(LANES, mask.block_k)), jnp.float32
        found = call.run(
            tpu_kernels.forward_kernel,
            products=2,
            ins={"q": call.queries(q), "k": call.keys(k), "v": call.keys(v)},
            outs={"out": call.queries(out), "lse": call.query_rows(lse)},
            scratch={"top": state, "total": state, "sums": ((mask.block_q, v.shape[3]), jnp.float32)},
        )
        return [found["out"], found["lse"]]

    most = most_tiles(mask.rows, mask.columns)
    out, lse = in_parts(run, parts_of(mask.rows, most, k.shape[1], SCALAR_MEMORY), [q, k, v], mask, bias)
    return out, lse[:, :, 0]


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
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """The contract of `core`; two kernels, one for dq and the bias, one for dk and dv."""
    arrays = [q, k, v, jnp.stack([lse, delta], axis=2), dout]
    same = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)

    def operands(call: Call, arrays: list[jax.Array]) -> dict[str, Operand]:
        q, k, v, stats, dout = arrays
        tables = {"q": call.queries(q), "k": call.keys(k), "v": call.keys(v)}
        return tables | {"stats": call.query_rows(stats), "dout": call.queries(dout)}

    def queries(arrays: list[jax.Array], mask: BlockMask, bias: Bias | None) -> list[jax.Array]:
        q, k, v, *_ = arrays
        call = Call(q, k, v, mask, bias, options, keys_still=False)
        outs = {"dq": call.queries(same(q))}
        if bias is not None and bias.trainable:
            shape = (*q.shape[:2], bias.numbers.shape[1], mask.block_k)
            outs["dnumbers"] = call.of_head(jax.ShapeDtypeStruct(shape, jnp.float32))
        scratch = {
            "sums": ((mask.block_q, q.shape[3]), jnp.float32),
            "stats": ((2, mask.block_q, LANES), jnp.float32),
        }
        return list(call.run(tpu_kernels.queries_kernel, 3, operands(call, arrays), outs, scratch).values())

    def keys(arrays: list[jax.Array], mask: BlockMask, bias: Bias | None) -> list[jax.Array]:
        q, k, v, *_ = arrays
        call = Call(q, k, v, mask, bias, options, keys_still=True)
        outs = {"dk": call.keys(same(k)), "dv": call.keys(same(v))}
        scratch = {name: ((mask.block_k, x.array.shape[3]), jnp.float32) for name, x in outs.items()}
        return list(call.run(tpu_kernels.keys_kernel, 4, operands(call, arrays), outs, scratch).values())

    most = most_tiles(mask.rows, mask.columns)
    dq, *more = in_parts(queries, parts_of(mask.rows, most, k.shape[1], SCALAR_MEMORY), arrays, mask, bias)
    dk, dv = in_parts(keys, parts_of(mask.columns, most, k.shape[1], SCALAR_MEMORY), arrays, mask, bias)
    return dq, dk, dv, more[0].sum((0, 3)) if more else None


class Operand(NamedTuple):
    """An array (or the shape of a result) and how the grid cuts it."""

    array: Any
    spec: pl.BlockSpec


class Call:
    """One kernel over one mask: the grid, the blocks of its operands, and the launch."""

    def __init__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: BlockMask,
        bias: Bias | None,
        options: Options,
        keys_still: bool,
        name: str = "block_sparse",
        keep: bool = True,
    ):
        """``keep`` gives the kernel the scratch for the still tokens' numbers as columns; ``name`` begins its own."""
        self.name, self.keep = name, keep
        self.mask, self.bias, self.options = mask, bias, options
        self.batch, self.heads, length_q, self.width = q.shape
        groups, length_k, self.value_width = k.shape[1], k.shape[2], v.shape[3]
        group = self.heads // groups
        lists = mask.columns if keys_still else mask.rows
        rows, columns = length_q // mask.block_q, length_k // mask.block_k
        if keys_still:
            rows, columns = columns, rows
        own = keys_still and lists.indices.shape[1] > 1  # each query head has lists of its own
        fields = Fields.of(rows, group if own else 1, columns)
        self.steps = steps_of(lists, fields, most_tiles(mask.rows, mask.columns), group if own else 1)
        self.walk = Walk(
            fields=fields,
            batches=self.steps.places.shape[0],
            heads=self.steps.places.shape[1],
            length=self.steps.places.shape[2],
            keys_still=keys_still,
            group=group,
            axis=group if keys_still and not own else 1,
        )
        self.grid = (self.batch, groups if keys_still else self.heads, self.steps.live, self.walk.axis)

        self.tokens = {
            name: table
            for i, name in enumerate(("tokens_q", "tokens_k"))
            if (table := _tokens(mask.data[i], None if mask.positions is None else mask.positions[i])) is not None
        }
        self.still = "tokens_k" if keys_still else "tokens_q"
        self.frame = Frame(
            walk=self.walk,
            see=mask.see,
            at=None if bias is None else bias.at,
            options=options,
            block_q=mask.block_q,
            block_k=mask.block_k,
            offset=mask.offset,
            explicit=mask.positions is not None,
            slopes=0 if bias is None else bias.numbers.shape[1],
            refresh=keys_still and group > 1 and "tokens_k" in self.tokens and self.tokens["tokens_k"].shape[1] > 1,
        )

    def queries(self, x: Any) -> Operand:
        """[B, H, Lq, n], a block of queries at a time."""
        return Operand(x, self._spec((self.mask.block_q, x.shape[3]), lambda b, h, g, i, j: (b, h, i, 0)))

    def keys(self, x: Any) -> Operand:
        """[B, G, Lk, n], a block of keys at a time."""
        return Operand(x, self._spec((self.mask.block_k, x.shape[3]), lambda b, h, g, i, j: (b, g, j, 0)))

    def query_rows(self, x: Any) -> Operand:
        """[1 or B, 1 or H, n, Lq], the n numbers of a block of queries."""
        some_b, some_h = (min(size - 1, 1) for size in x.shape[:2])
        at = lambda b, h, g, i, j: (b * some_b, h * some_h, 0, i)
        return Operand(x, self._spec((x.shape[2], self.mask.block_q), at))

    def key_rows(self, x: Any) -> Operand:
        """[1 or B, 1 or H, n, Lk], the n numbers of a block of keys."""
        some_b, some_h = (min(size - 1, 1) for size in x.shape[:2])
        at = lambda b, h, g, i, j: (b * some_b, h * some_h, 0, j)
        return Operand(x, self._spec((x.shape[2], self.mask.block_k), at))

    def of_head(self, x: Any) -> Operand:
        """[B, H, n, m], all of a head."""
        return Operand(x, self._spec(x.shape[2:], lambda b, h, g, i, j: (b, h, 0, 0)))

    def _spec(self, shape: tuple[int, ...], at: Callable[..., Any]) -> pl.BlockSpec:
        def index(b: Any, h: Any, s: Any, r: Any, places: Any, *_: Any) -> Any:
            head, key_head, row, moving = self.walk.find(b, h, s, r, places)
            i, j = (moving, row) if self.walk.keys_still else (row, moving)
            return at(b, head, key_head, i, j)

        return pl.BlockSpec((None, None, *shape), index)

    def run(
        self,
        kernel: Callable[..., None],
        products: int,
        ins: dict[str, Operand],
        outs: dict[str, Operand],
        scratch: dict[str, Any],
    ) -> dict[str, jax.Array]:
        """The outputs, by name, of ``kernel(frame, scalars, ins, outs, scratch)``; ``products`` are those per tile."""
        scalars = {"places": self.steps.places.reshape(-1), "kinds": self.steps.kinds.reshape(-1)}
        scalars |= {f"number{i}": jnp.asarray(x).reshape(1) for i, x in enumerate(self.mask.numbers)}
        if self.bias is not None:
            scalars["bias"] = self.bias.numbers.astype(jnp.float32).reshape(-1)
        rows = {"tokens_q": self.query_rows, "tokens_k": self.key_rows}
        ins = ins | {name: rows[name](x) for name, x in self.tokens.items()}
        if self.keep and self.still in self.tokens:
            size = self.mask.block_k if self.walk.keys_still else self.mask.block_q
            scratch = scratch | {"still": ((self.tokens[self.still].shape[2], size, LANES), jnp.int32)}

        def body(*refs: Any) -> None:
            rest = iter(refs)
            kernel(self.frame, *({name: next(rest) for name in names} for names in (scalars, ins, outs, scratch)))

        results = pl.pallas_call(
            body,
            out_shape=[x.array for x in outs.values()],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(scalars),
                grid=self.grid,
                in_specs=[x.spec for x in ins.values()],
                out_specs=[x.spec for x in outs.values()],
                scratch_shapes=[pltpu.VMEM(*x) for x in scratch.values()],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=None if self.mask.block_q * self.mask.block_k <= 512**2 else FAST_MEMORY,
            ),
            cost_estimate=self._cost(products, ins, outs),
            interpret=self.options.interpret,
            name=f"{self.name}_{kernel.__name__}",
        )(*scalars.values(), *(x.array for x in ins.values()))
        return dict(zip(outs, results, strict=True))

    def _cost(self, products: int, ins: dict[str, Operand], outs: dict[str, Operand]) -> pl.CostEstimate:
        """Of the steps there may be at most (all there are, if the mask is static)."""
        pairs = self.batch * self.heads * self.walk.length * self.mask.block_q * self.mask.block_k
        if self.walk.keys_still and self.walk.axis == 1:  # a step is of one query head already
            pairs //= self.walk.group
        return pl.CostEstimate(
            flops=products * pairs * (self.width + self.value_width),
            transcendentals=pairs,
            bytes_accessed=sum(
                math.prod(x.array.shape) * x.array.dtype.itemsize for x in (*ins.values(), *outs.values())
            ),
        )


def _tokens(data: Any, positions: Any) -> Any:
    """int32 [1 or B, 1 or H, n, L]: the positions, if they are given, and the mask's data; None if there is neither."""
    parts = [] if positions is None else [positions[:, None, None]]
    parts += [data] if data.shape[2] else []
    if len(parts) < 2:
        return parts[0] if parts else None
    lead = np.broadcast_shapes(*(x.shape[:2] for x in parts))
    return jnp.concatenate([jnp.broadcast_to(x, (*lead, *x.shape[2:])) for x in parts], axis=2)


def _small_units(chip: str) -> bool:
    """Whether the chip's matrix units are 128 x 128: all up to v5."""
    return any(f"v{n}" in chip for n in (4, 5))


def fitting(length: int, side: int) -> int:
    """The largest block up to ``side`` that pads ``length`` no more than a quarter beyond what the smallest does."""
    least = -(-length // LANES) * LANES
    while side > LANES and -(-length // side) * side > least + least // 4:
        side //= 2
    return side
