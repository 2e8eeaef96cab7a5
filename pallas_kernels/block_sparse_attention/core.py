"""The contract of block-sparse attention, and its mathematics on one tile.

A back end is a module with four functions over the types below:

    supports(request: Request) -> str | None                      why it cannot serve, or None
    blocks(request: Request) -> (block_q, block_k)                the tile it would choose; `request` has none yet
    forward(q, k, v, mask, bias, options) -> (out, lse)
    backward(q, k, v, mask, bias, options, lse, delta, dout) -> (dq, dk, dv, dnumbers)

with q [B, H, Lq, K], k [B, G, Lk, K], v [B, G, Lk, V] (query head h reads key head h // (H / G)), lengths padded to
multiples of the blocks; out [B, H, Lq, V] in v's dtype; lse float32 [B, H, Lq], the natural log-sum-exp, -inf for a
query that sees no key (whose out is 0). For `backward`, lse is finite everywhere (0 for such a query, whose rows every
tile hides), delta = sum(dout * out, -1) - dlse float32 [B, H, Lq], dout in v's dtype; gradients come in the dtypes of
their arrays, dnumbers float32 [H, n] as `Bias.numbers`, or None without a bias or if it is not trainable.

The functions on tiles work in base 2: logits carry a factor log2(e), and 2^x takes the place of e^x, which saves a
product per score on hardware whose exponential is of base 2 (Dao 2023, FlashAttention-2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30  # a hidden score; finite, so that no NaN arises
FLOOR = NEVER / 2  # the least maximum of a row: above NEVER, so that hidden weights are exactly 0
LOG2E = math.log2(math.e)


class Lists(NamedTuple):
    """For each row of a block map, the blocks it meets. Bm is 1 or B, Hm is 1 or H; numpy where static.

    Attributes:
      counts: int32 [Bm, Hm, rows].
      indices: int32 [Bm, Hm, rows, width], rising; beyond the count the last live index repeats (0 if there is none),
        so that a pipeline which fetches by index fetches nothing new.
      kinds: int32, as indices: bit 0 is set if every pair of the tile is visible (then `BlockMask.see` need not run);
        the bits above are the mask's own, handed to `see`.
    """

    counts: Any
    indices: Any
    kinds: Any


def every_pair(numbers: Any, pos_q: Any, pos_k: Any, data_q: Any, data_k: Any, kind: Any) -> jax.Array:
    """`BlockMask.see` of a mask of whole tiles."""
    return jnp.bool_(True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockMask:
    """Which tiles hold a visible pair, and which pairs of a tile are visible.

    Attributes:
      rows: per query block, its key blocks.
      columns: the transpose: per key block, its query blocks (for dk and dv).
      positions: int32 ([1 or B, Lq], [1 or B, Lk]) of queries and keys, or None where the query in slot i is at
        position i + offset and the key in slot j at position j.
      data: int32 ([Bm, Hm, nq, Lq], [Bm, Hm, nk, Lk]): the mask's own data of each token; nq or nk may be 0.
      numbers: scalars of the mask, possibly traced, handed to `see`; some masks need arrays among them (tables
        [Bm, Hm, n] by distance), which only back ends that gather can serve.
      block_q, block_k: the shape of a tile; Lq and Lk above are multiples of them.
      length_q, length_k: the lengths before padding.
      offset: see ``positions``.
      see: ``see(numbers, pos_q, pos_k, data_q, data_k, kind) -> bool``, pure and of any shapes that broadcast: a kernel
        calls it with pos_q [bq, 1], pos_k [1, bk], data as tuples of nq and nk such arrays, kind a scalar. By default
        every pair of a listed tile is visible.
    """

    rows: Lists
    columns: Lists
    positions: tuple[Any, Any] | None
    data: tuple[Any, Any]
    numbers: tuple[Any, ...]
    block_q: int = dataclasses.field(metadata={"static": True})
    block_k: int = dataclasses.field(metadata={"static": True})
    length_q: int = dataclasses.field(metadata={"static": True})
    length_k: int = dataclasses.field(metadata={"static": True})
    offset: int = dataclasses.field(default=0, metadata={"static": True})
    see: Callable[..., jax.Array] = dataclasses.field(default=every_pair, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias:
    """An additive bias of the logits, evaluated in the tile.

    Attributes:
      numbers: float32 [H, n], what each head needs to know; any pytree of float arrays where ``at`` is None.
      tile: ``tile(numbers, pos_q, pos_k)``: int32 [B or 1, l] and [B or 1, t] -> float32 [B or 1, H, l, t], for back
        ends that can gather.
      at: the same for a kernel, ``at(numbers, pos_q, pos_k) -> float32``, pure, elementwise and of any shapes that
        broadcast: called with the n scalars of its head as a tuple, pos_q [bq, 1] and pos_k [1, bk]. None if there is
        no such form; kernels then refuse.
      trainable: whether `numbers` need a gradient.
    """

    numbers: Any
    tile: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    at: Callable[..., jax.Array] | None = dataclasses.field(default=None, metadata={"static": True})
    trainable: bool = dataclasses.field(default=True, metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Options:
    """Numbers of one call.

    Attributes:
      scale: factor of q k^T.
      soft_cap: if positive, logits become ``cap * tanh(logits / cap)`` before the bias.
      interpret: run the kernel in an interpreter: True, or the interpreter's own parameters.
      tuning: (name, value) pairs of a back end's own settings (stages, warps), from the tuning table.
    """

    scale: float
    soft_cap: float = 0.0
    interpret: Any = False
    tuning: tuple[tuple[str, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """What `supports` may judge by, all static.

    Attributes:
      platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``; ``chip``: the device kind ("NVIDIA H200", "TPU v6 lite").
      dtype: of q, k and v.
      heads, groups, width, value_width, length_q, length_k, batch: sizes.
      traced: whether the lists are traced arrays.
      grain: the size of the blocks of tokens that the mask is made of, which tiles had better divide; 0 for none.
      list_width: the longest list of a row; of a column: ``column_width``.
      tiles: how many tiles the fullest map has, or 0 if that is traced.
      data_q, data_k: how many numbers the mask has per query and key.
      own_lists: whether each query head has lists of its own.
      tables: whether the mask has arrays among its numbers.
      bias: None, or ``"fixed"``, ``"trainable"``, or ``"tile"`` for one without the kernel form `Bias.at`.
      interpret: an interpreter was asked for, so the platform does not matter.
    """

    platform: str
    chip: str
    dtype: str
    batch: int
    heads: int
    groups: int
    width: int
    value_width: int
    length_q: int
    length_k: int
    block_q: int
    block_k: int
    traced: bool = False
    grain: int = 0
    list_width: int = 0
    column_width: int = 0
    tiles: int = 0
    data_q: int = 0
    data_k: int = 0
    own_lists: bool = False
    tables: bool = False
    bias: str | None = None
    interpret: Any = False


def scores(
    qk: jax.Array, options: Options, bias: jax.Array | None = None, seen: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | float]:
    """Base-2 logits of a tile from q k^T (float32), and d(natural logit) / d(q k^T)."""
    if not options.soft_cap and bias is None:
        logits, slope = qk * (options.scale * LOG2E), options.scale
    else:
        logits, slope = qk * options.scale, options.scale
        if options.soft_cap:
            share = jnp.tanh(logits / options.soft_cap)
            logits, slope = options.soft_cap * share, options.scale * (1 - share * share)
        if bias is not None:
            logits = logits + bias
        logits = logits * LOG2E
    return (logits if seen is None else jnp.where(seen, logits, NEVER)), slope


class Softmax(NamedTuple):
    """A softmax under way over a row's tiles (base 2): the running maximum and sum, float32 [rows, n].

    n is 1, or the width of a vector register that divides the tile's: then every column holds the maximum, and each its
    own part of the sum, so that no step sums across a register.
    """

    top: jax.Array
    total: jax.Array


def widened(x: jax.Array, width: int) -> jax.Array:
    """Columns [..., n] that are all alike, as any array that broadcasts against [..., width]."""
    n = x.shape[-1]
    if n == 1 or n == width:
        return x
    if width % n:
        return x[..., :width] if width < n else x[..., :1]
    return jnp.concatenate([x] * (width // n), -1)


def softmax_start(rows: tuple[int, ...]) -> Softmax:
    """The state, of shape [..., n], before any tile."""
    return Softmax(jnp.full(rows, FLOOR, jnp.float32), jnp.zeros(rows, jnp.float32))


def softmax_step(state: Softmax, logits: jax.Array) -> tuple[Softmax, jax.Array, jax.Array]:
    """Takes in a tile's base-2 logits; returns the state, the tile's weights, and the factor, `widened`, that what was
    summed so far has to be multiplied with (Milakov and Gimelshein 2018, Online normalizer calculation for softmax)."""
    n, width = state.top.shape[-1], logits.shape[-1]
    top = jnp.maximum(state.top, logits.max(-1, keepdims=True))
    weights = jnp.exp2(logits - widened(top, width))
    fade = jnp.exp2(state.top - top)
    if n == 1:
        total = weights.sum(-1, keepdims=True)
    else:
        total = sum(weights[..., i : i + n] for i in range(0, width, n))
    return Softmax(top, state.total * fade + total), weights, fade


def softmax_finish(state: Softmax, weighted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The output and the natural log-sum-exp [rows, 1] from the weighted sum of values; 0 and -inf for an empty row."""
    top, total = state
    if top.shape[-1] > 1:
        top, total = top[..., :1], total.sum(-1, keepdims=True)
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    lse = jnp.where(some, (top + jnp.log2(safe)) / LOG2E, -jnp.inf)
    return weighted / safe, lse


def weights_again(logits: jax.Array, lse: jax.Array) -> jax.Array:
    """The softmax weights of a tile from its base-2 logits and the rows' (finite, natural) log-sum-exp."""
    return jnp.exp2(logits - lse * LOG2E)


def score_gradient(weights: jax.Array, dweights: jax.Array, delta: jax.Array) -> jax.Array:
    """d loss / d logits (natural) of a tile: weights * (dout v^T - delta)."""
    return weights * (dweights - delta)
