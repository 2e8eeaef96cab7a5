"""Published sparse attention patterns, as masks made of the algebra's parts.

Every function returns a mask (or per-layer settings) for `jaxlm.ops.attention` and the mixers' ``mask`` slot; those
whose blocks are chosen from the data return one with traced arrays.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention.mask import Blocks, Causal, Diagonals, Dilated, Globals, Lambda, Sinks, Strided, Window
from jaxlm.core.config import require
from jaxlm.core.mask import Mask


def longformer(window: int, global_tokens: tuple[int, ...] = (), *, dilation: int = 1, causal: bool = False) -> Mask:
    """A sliding window of ``window`` keys, half of them ahead unless ``causal``, and global tokens that see all and are
    seen by all (Beltagy et al. 2020, Longformer, section 3.1); a dilated window is causal."""
    if dilation > 1:
        require(causal, f"longformer: a dilated window is causal here, got dilation {dilation} and causal False")
        band: Mask = Dilated(window, dilation)
    else:
        band = Window(window) if causal else Window(window // 2 + 1, ahead=window // 2)
    if not global_tokens:
        return band
    return (band | Globals(global_tokens)) & Causal() if causal else band | Globals(global_tokens)


def bigbird(length: int, *, block: int = 64, random: int = 3, window: int = 3, ends: int = 1, seed: int = 0) -> Mask:
    """Blocks of a window, of the ends of the row, and random ones (Zaheer et al. 2020, Big Bird, appendix D).

    Args:
      length: of the row.
      block: tokens of a block.
      random: random blocks that each query block sees, among those it does not see already.
      window: blocks of the window, an odd number.
      ends: blocks at either end that see all and are seen by all.
      seed: of the random blocks.
    """
    require(window % 2 == 1, f"bigbird: expected an odd number of window blocks, got {window}")
    blocks = -(-length // block)
    chosen = random_blocks(blocks, random, window=window, ends=ends, seed=seed)
    seen = _banded(blocks, window, ends)
    return Blocks(block, tuple(tuple(sorted(row | set(more) - {-1})) for row, more in zip(seen, chosen, strict=True)))


def random_blocks(
    blocks: int, random: int, *, window: int = 3, ends: int = 1, seed: int = 0
) -> tuple[tuple[int, ...], ...]:
    """For each of a row's blocks, ``random`` others that neither window nor ends of `bigbird` show it; (-1,) for none.
    The indices of a `Blocks`."""
    rng, every = np.random.default_rng(seed), set(range(blocks))
    others = [sorted(every - seen) for seen in _banded(blocks, window, ends)]
    return tuple(tuple(rng.permutation(row)[:random].tolist()) or (-1,) for row in others)


def _banded(blocks: int, window: int, ends: int) -> list[set[int]]:
    """The blocks that window and ends show to each block."""
    every = set(range(blocks))
    outer = {*range(min(ends, blocks)), *range(max(blocks - ends, 0), blocks)}
    near = (set(range(i - window // 2, i + window // 2 + 1)) for i in range(blocks))
    return [every if i in outer else every & (outer | around) for i, around in enumerate(near)]


def sparse_transformer(stride: int, *, local: int | None = None) -> Mask:
    """The causal strided pattern: the last ``local`` (by default ``stride``) keys and every ``stride``-th before (Child
    et al. 2019, Generating Long Sequences with Sparse Transformers, section 4.2)."""
    return Causal() & (Window(local or stride) | Strided(stride))


def a_shape(window: int, sinks: int) -> Mask:
    """First tokens and a window (Xiao et al. 2023; the A-shape of Jiang et al. 2024, MInference)."""
    return Lambda(window, sinks)


def block_strided(window: int, block: int, stride: int, *, sinks: int = 0) -> Mask:
    """A window and, of what lies before, every ``stride``-th block: those at block distances that ``stride`` divides
    (Ge et al. 2024, LongGen; Qiu et al. 2019, Blockwise Self-Attention for the blocks)."""
    seen = Window(window) | Strided(stride, block)
    return Causal() & (seen | Sinks(sinks) if sinks else seen)


def longgen_layers(depth: int, *, full: float = 1 / 3) -> tuple[bool, ...]:
    """Which layers attend fully: the middle third, the rest being sparse (Ge et al. 2024, A Little Goes a Long Way)."""
    count = max(1, round(depth * full))
    start = (depth - count) // 2
    return tuple(start <= i < start + count for i in range(depth))


def masformer_spans(depth: int, *, full: int, span: int, length: int) -> tuple[int, ...]:
    """A window for each layer: ``length`` in ``full`` layers evenly placed from the bottom up, ``span`` in the others
    (Zhang et al. 2023, MASFormer). They go into `Group.per_layer` at ``"0.mixer.mask.size"``."""
    require(0 < full <= depth, f"masformer_spans: expected 1 to {depth} full layers, got {full}")
    chosen = {i * depth // full for i in range(full)}
    return tuple(length if i in chosen else span for i in range(depth))


def vertical_slash(columns: Any, offsets: Any, *, block: int = 1) -> Mask:
    """Causal; the keys at ``columns`` and at the distances ``offsets``, int32 [n] or [B or 1, H or 1, n], may be traced
    (Jiang et al. 2024, MInference 1.0). With ``block`` whole tiles crossed by a diagonal are seen, as in its kernel."""
    return Causal() & (Globals(columns, queries=False) | Diagonals(offsets, block))


def vertical_slash_estimate(
    q: jax.Array, k: jax.Array, *, last: int = 64, columns: int, offsets: int, first: int = 0, near: int = 0
) -> tuple[jax.Array, jax.Array]:
    """The columns and distances that matter most to the last queries (Jiang et al. 2024, MInference 1.0, algorithm 2).

    Args:
      q, k: [B, L, H, K].
      last: how many queries judge.
      columns, offsets: how many to choose.
      first, near: columns at the start and distances from 0 that are chosen whatever their score.

    Returns:
      int32 [B, H, columns] and [B, H, offsets], for `vertical_slash`.
    """
    length = k.shape[1]
    last = min(last, length)
    at = length - last + jnp.arange(last)
    logits = (
        jnp.einsum("blhk,bthk->bhlt", q[:, -last:].astype(jnp.float32), k.astype(jnp.float32)) * q.shape[-1] ** -0.5
    )
    weights = jax.nn.softmax(jnp.where(at[:, None] >= jnp.arange(length), logits, -jnp.inf), -1)
    vertical = weights.sum(2)
    # Row l of the judges has its distance d at column at[l] - d.
    far = at[:, None] - jnp.arange(length)
    turned = jnp.take_along_axis(weights, jnp.broadcast_to(jnp.maximum(far, 0), weights.shape), -1)
    slash = jnp.where(far >= 0, turned, 0.0).sum(2)
    vertical = jnp.where(jnp.arange(length) < first, jnp.inf, vertical)
    slash = jnp.where(jnp.arange(length) < near, jnp.inf, slash)
    return jax.lax.top_k(vertical, columns)[1], jax.lax.top_k(slash, offsets)[1]


def block_sparse(indices: Any, *, block: int = 64) -> Mask:
    """Causal; each query block sees the key blocks at ``indices``, int32 [B or 1, H or 1, query blocks, n], traced or
    not; negative ones stand for none. What retrieval and scoring rules choose goes in here."""
    return Causal() & Blocks(block, indices)


def pooled_blocks(q: jax.Array, k: jax.Array, *, block: int = 64, count: int) -> jax.Array:
    """For each query block the ``count`` key blocks, none later, of the greatest product of block means, its own always
    among them (Jiang et al. 2024, MInference 1.0, block-sparse heads).

    Args:
      q, k: [B, L, H, K], L a multiple of ``block``.

    Returns int32 [B, H, L / block, count], -1 where there are fewer.
    """
    require(
        q.shape[1] % block == 0 and k.shape[1] == q.shape[1], f"pooled_blocks: {q.shape[1]} is not blocks of {block}"
    )
    mean = lambda x: x.reshape(x.shape[0], -1, block, *x.shape[2:]).mean(2, dtype=jnp.float32)
    scores = jnp.einsum("bqhk,bthk->bhqt", mean(q), mean(k))
    at = jnp.arange(scores.shape[-1])
    scores = jnp.where(at[:, None] == at, jnp.inf, jnp.where(at[:, None] >= at, scores, -jnp.inf))
    best, where = jax.lax.top_k(scores, min(count, scores.shape[-1]))
    return jnp.where(jnp.isneginf(best), -1, where)
