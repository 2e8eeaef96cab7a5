"""The law of masks: pointwise, block map (static and traced) and dense agree, over random trees of the algebra."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlm.attention
from jaxlm.attention import patterns
from jaxlm.attention.combine import And, Heads, Not, Or, PerHead
from jaxlm.attention.mask import (
    Anchor,
    Bidirectional,
    BlockBand,
    Blocks,
    Causal,
    Chunked,
    Diagonals,
    Dilated,
    Globals,
    Lambda,
    Prefix,
    Segments,
    Sinks,
    Strided,
    Window,
    dense,
)
from jaxlm.attention.show import MARKS, show
from jaxlm.core import config, registry
from jaxlm.core.errors import ConfigError
from jaxlm.core.mask import Mask
from jaxlm.ops.block_map import block_map

LENGTH = 24  # of keys; data of masks are drawn for it

small = st.integers(1, 12)
ids = st.lists(st.integers(0, 3), min_size=LENGTH, max_size=LENGTH).map(lambda x: tuple(sorted(x)))
lists = st.lists(st.lists(st.integers(-1, 5), max_size=3).map(tuple), min_size=6, max_size=6).map(
    lambda rows: tuple(row or (-1,) for row in rows)
)
ATOMS: dict[str, st.SearchStrategy[Mask]] = {
    "causal": st.just(Causal()),
    "bidirectional": st.just(Bidirectional()),
    "window": st.builds(Window, small, st.integers(0, 5)),
    "dilated": st.builds(Dilated, small, st.integers(1, 4)),
    "strided": st.builds(Strided, small, st.integers(1, 3)),
    "chunked": st.builds(Chunked, small),
    "sinks": st.builds(Sinks, small),
    "prefix": st.builds(Prefix, small),
    "lambda": st.builds(Lambda, small, small),
    "segments": st.builds(Segments, ids),
    "anchor": st.builds(Anchor, ids),
    "globals": st.builds(Globals, st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=3).map(tuple)),
    "diagonals": st.builds(Diagonals, st.lists(st.integers(-5, 20), min_size=1, max_size=3).map(tuple), st.just(1)),
    "blocks": st.builds(Blocks, st.just(4), lists),
    "block_band": st.builds(BlockBand, st.integers(1, 5), st.integers(1, 8), st.integers(0, 2), st.integers(0, 2)),
}
trees = st.recursive(
    st.one_of(*ATOMS.values()),
    lambda inner: st.one_of(st.builds(And, inner, inner), st.builds(Or, inner, inner), st.builds(Not, inner)),
    max_leaves=5,
)


def test_the_table_has_every_registered_mask() -> None:
    assert set(ATOMS) | {"and", "or", "not", "per_head"} == set(jaxlm.attention.METHODS)


def from_map(mask: Mask, queries: int, blocks: tuple[int, int], *, positions: Any = None, traced: bool = False) -> Any:
    """The mask as booleans [queries, LENGTH], by a block map and its tiles; and what the map says of each tile."""
    found = block_map(mask, (queries, LENGTH), blocks, positions=positions)
    assert isinstance(found.rows.counts, jax.Array if traced else np.ndarray)
    rows, cols = -(-queries // blocks[0]), -(-LENGTH // blocks[1])
    seen = np.zeros((rows * blocks[0], cols * blocks[1]), bool)
    kinds = np.zeros((rows, cols), int)
    for i in range(rows):
        for n in range(int(found.rows.counts[0, 0, i])):
            j, kind = int(found.rows.indices[0, 0, i, n]), int(found.rows.kinds[0, 0, i, n])
            at = [slice(i * blocks[0], (i + 1) * blocks[0]), slice(j * blocks[1], (j + 1) * blocks[1])]
            kinds[i, j] = 1 + (kind & 1)
            if found.positions is None:
                pos_q, pos_k = (np.arange(s.start, s.stop) for s in at)
                pos_q = pos_q + found.offset
            else:
                pos_q, pos_k = (np.asarray(p)[0, s] for p, s in zip(found.positions, at, strict=True))
            data_q = tuple(np.asarray(x)[None, None, at[0], None] for x in np.asarray(found.data[0])[0, 0])
            data_k = tuple(np.asarray(x)[None, None, None, at[1]] for x in np.asarray(found.data[1])[0, 0])
            tile = found.see(found.numbers, pos_q[None, None, :, None], pos_k[None, None, None], data_q, data_k, kind)
            seen[at[0], at[1]] = np.asarray(tile)[0, 0]
    columns = np.zeros_like(kinds)
    for j in range(cols):
        for n in range(int(found.columns.counts[0, 0, j])):
            columns[int(found.columns.indices[0, 0, j, n]), j] = 1 + (int(found.columns.kinds[0, 0, j, n]) & 1)
    np.testing.assert_array_equal(columns, kinds)
    return seen[:queries, :LENGTH], kinds


def whole(mask: Mask, queries: int) -> np.ndarray:
    at = np.arange(LENGTH, dtype=np.int32)[None]
    return np.broadcast_to(np.asarray(dense(mask, at[:, LENGTH - queries :], at))[0, 0], (queries, LENGTH))


def tiles(seen: np.ndarray, blocks: tuple[int, int]) -> np.ndarray:
    """What each tile really holds, its padding apart: 0 nothing, 1 something, 2 all."""
    rows, cols = (-(-n // b) for n, b in zip(seen.shape, blocks, strict=True))
    out = np.zeros((rows, cols), int)
    for i in range(rows):
        for j in range(cols):
            part = seen[i * blocks[0] : (i + 1) * blocks[0], j * blocks[1] : (j + 1) * blocks[1]]
            out[i, j] = 2 if part.all() and part.shape[1] == blocks[1] else int(part.any())
    return out


@settings(max_examples=100)
@given(trees, st.integers(1, LENGTH), st.sampled_from([(4, 4), (5, 3), (8, 4), (7, 9)]))
def test_the_three_lowerings_agree(mask: Mask, queries: int, blocks: tuple[int, int]) -> None:
    want = whole(mask, queries)
    seen, kinds = from_map(mask, queries, blocks)
    np.testing.assert_array_equal(seen, want)  # so no tile with a visible pair is missing
    assert (kinds != 2)[tiles(want, blocks) < 2].all()  # and none is whole that is not
    assert not want[np.triu_indices(queries, 1 + LENGTH - queries, LENGTH)].any() or not mask.causal


@settings(max_examples=40)
@given(st.one_of(*ATOMS.values()), st.integers(1, LENGTH))
def test_atoms_know_their_tiles_exactly(mask: Mask, queries: int) -> None:
    """Where one part alone is lowered, tiles it lists as possibly visible are."""
    if isinstance(mask, (Chunked, Segments, Diagonals, Lambda)):
        return  # whose bounds are of ranges; the algebra only promises that they are safe
    blocks = (4, 4) if (LENGTH - queries) % 4 == 0 else (1, 1)
    if isinstance(mask, Blocks) and blocks == (1, 1):
        blocks = (2, 2) if (LENGTH - queries) % 2 == 0 else (1, 1)
    want = whole(mask, queries)
    _, kinds = from_map(mask, queries, blocks)
    np.testing.assert_array_equal(kinds > 0, tiles(want, blocks) > 0)


@settings(max_examples=15)
@given(trees, st.integers(0, 2**32 - 1))
def test_explicit_positions(mask: Mask, seed: int) -> None:
    """Positions with repeats and in any order, static and traced, are looked at where they are."""
    rng = np.random.default_rng(seed)
    pos_q, pos_k = (np.sort(rng.integers(0, LENGTH, (1, n))).astype(np.int32) for n in (10, LENGTH))
    rng.shuffle(pos_q[0])
    want = np.broadcast_to(np.asarray(dense(mask, pos_q, pos_k))[0, 0], (10, LENGTH))
    for positions in ((pos_q, pos_k), (jnp.asarray(pos_q), jnp.asarray(pos_k))):
        seen, _ = from_map(mask, 10, (4, 5), positions=positions, traced=isinstance(positions[0], jax.Array))
        np.testing.assert_array_equal(seen, want)


@pytest.mark.parametrize(
    "mask, bare",
    [
        (lambda x: Window(x["n"]), {"n": np.int32(5)}),
        (lambda x: Causal() & Strided(x["n"]), {"n": np.int32(3)}),
        (lambda x: Segments(x["ids"]) & ~Window(3), {"ids": np.sort(np.arange(LENGTH) % 5 + 1).astype(np.int32)}),
        (
            lambda x: Blocks(4, x["lists"]) | Sinks(2),
            {"lists": np.array([[0, -1], [1, 0], [2, 5], [0, 3], [4, 4], [-1, -1]])},
        ),
        (lambda x: Globals(x["at"]), {"at": np.array([3, 17])}),
        (lambda x: Causal() & Diagonals(x["far"]), {"far": np.array([0, 7])}),
    ],
    ids=["window", "strided", "segments", "blocks", "globals", "diagonals"],
)
def test_traced_masks(mask: Any, bare: dict[str, np.ndarray]) -> None:
    static = {k: int(v) if v.ndim == 0 else v for k, v in bare.items()}
    want = whole(mask(static), LENGTH)
    traced = mask({k: jnp.asarray(v) for k, v in bare.items()})
    seen, _ = from_map(traced, LENGTH, (4, 4), traced=True)
    np.testing.assert_array_equal(seen, want)
    bound = traced.most_blocks(4, 4)
    assert bound is None or bound >= block_map(mask(static), (LENGTH, LENGTH), (4, 4)).rows.counts.max()


@settings(max_examples=60)
@given(st.one_of(*ATOMS.values()), st.integers(1, 7), st.integers(1, 7))
def test_bounds_of_lists_hold(mask: Mask, block_q: int, block_k: int) -> None:
    bound = mask.most_blocks(block_q, block_k)
    if bound is not None:
        assert block_map(mask, (LENGTH, LENGTH), (block_q, block_k)).rows.counts.max() <= bound


@settings(max_examples=15)
@given(lists, st.integers(1, 9), st.integers(1, 9), st.integers(LENGTH - 3, LENGTH))
def test_lists_of_blocks_on_tiles_of_any_shape(indices: Any, block_q: int, block_k: int, queries: int) -> None:
    """Static and traced (whose lists are as wide as the bound), with tiles smaller, larger and across the blocks."""
    mask = Blocks(4, indices)
    traced = Blocks(4, jnp.asarray(mask._array()))
    want = whole(mask, queries)
    for either, kind in ((mask, np.ndarray), (traced, jax.Array)):
        found = block_map(either, (queries, LENGTH), (block_q, block_k))
        if isinstance(found.rows.counts, kind):
            seen, _ = from_map(either, queries, (block_q, block_k), traced=kind is jax.Array)
            np.testing.assert_array_equal(seen, want)


@settings(max_examples=40)
@given(trees)
def test_masks_are_configuration(mask: Mask) -> None:
    """JSON both ways, hashing, and an honest count of keys."""
    name = registry.name_of("mask", mask)
    again = config.make("mask", {"name": name, "args": config.to_dict(mask)})
    assert again == mask and hash(again) == hash(mask)
    kept = dict.fromkeys((Segments, Anchor))  # whose keys depend on ids that only a length of their own fits
    if not any(type(part) in kept for part in mask.masks()):
        assert mask.mean_keys(LENGTH) >= whole(mask, LENGTH).sum(1).mean() - 1e-9


def test_memory_of_a_long_map() -> None:
    """A million positions: the map is made in the memory of its blocks."""
    found = block_map(Window(512) | Sinks(4), (1 << 20, 1 << 20), (512, 512))
    assert found.rows.indices.shape == (1, 1, 2048, 3) and found.rows.counts.sum() == 1 + 2 + 3 * 2046


def test_patterns() -> None:
    at = np.arange(64)
    far = at[:, None] - at
    full = lambda mask: np.broadcast_to(np.asarray(dense(mask, at[None], at[None]))[0, 0], (64, 64))
    np.testing.assert_array_equal(full(patterns.longformer(8)), abs(far) <= 4)
    both = (abs(far) <= 4) | (at == 3) | (at == 3)[:, None]
    np.testing.assert_array_equal(full(patterns.longformer(8, (3,))), both)
    causal = patterns.longformer(4, (0,), dilation=3, causal=True)
    np.testing.assert_array_equal(full(causal), (far >= 0) & ((far % 3 == 0) & (far < 12) | (at == 0)))
    np.testing.assert_array_equal(full(patterns.sparse_transformer(9)), (far >= 0) & ((far < 9) | (far % 9 == 0)))
    np.testing.assert_array_equal(full(patterns.a_shape(9, 2)), (far >= 0) & ((far < 9) | (at < 2)))
    blocked = patterns.block_strided(6, 4, 3, sinks=1)
    apart = at[:, None] // 4 - at // 4
    np.testing.assert_array_equal(full(blocked), (far >= 0) & ((far < 6) | (apart % 3 == 0) | (at == 0)))
    bird = full(patterns.bigbird(64, block=8, random=2, seed=1)).reshape(8, 8, 8, 8)
    np.testing.assert_array_equal(bird.all((1, 3)), bird.any((1, 3)))
    counts = bird.any((1, 3)).sum(1)
    assert counts[0] == counts[-1] == 8 and (counts[1:-1] == [6, 7, 7, 7, 7, 6]).all()
    assert patterns.longgen_layers(6) == (False, False, True, True, False, False)
    assert patterns.masformer_spans(6, full=2, span=8, length=99) == (99, 8, 8, 99, 8, 8)
    assert patterns.masformer_spans(4, full=4, span=8, length=99) == (99,) * 4


def test_pooled_blocks() -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2, 32, 3, 4)), jnp.float32) for _ in range(2))
    chosen = np.asarray(patterns.pooled_blocks(q, k, block=4, count=3))
    means = [np.asarray(x).reshape(2, 8, 4, 3, 4).mean(2) for x in (q, k)]
    for b, h, i in np.ndindex(2, 3, 8):
        scores = means[1][b, : i + 1, h] @ means[0][b, i, h]
        best = {i, *np.argsort(-scores[:i])[:2].tolist()}
        assert set(chosen[b, h, i]) - {-1} == best


def test_show(tmp_path) -> None:
    text = show(Causal() & Window(2), 4, path=tmp_path / "mask.png")
    assert text.splitlines()[:4] == ["█···", "██··", "·██·", "··██"]
    assert (tmp_path / "mask.png").stat().st_size > 1000
    coarse = show(Window(300) | Globals((0,)), 100_000, cells=4).splitlines()
    assert [row[0] for row in coarse[:4]] == ["▒"] * 4 and coarse[3] == "▒·▒▒" and MARKS[2] not in "".join(coarse[:4])
    assert "·" in show(Blocks(8, ((0,), (0, 1))), 16) and show(PerHead((Heads(2, Causal()),)), 2).startswith("█·\n██")


def test_bad_masks_are_named() -> None:
    for make, words in [
        (lambda: Window(0), "Window.size"),
        (lambda: Window(3, ahead=-1), "Window.ahead"),
        (lambda: Dilated(3, 0), "Dilated.step"),
        (lambda: Blocks(0), "Blocks.size"),
        (lambda: Blocks(4, np.zeros((2, 2))), "Blocks.indices"),
        (lambda: Segments("documents"), "Segments.ids"),
        (lambda: Segments(("a",)), "Segments.ids"),
        (lambda: Globals((0,), queries=False, keys=False), "Globals"),
        (lambda: And("casual", Causal()), "causal"),
        (lambda: PerHead(()), "PerHead.parts"),
        (lambda: block_map(Segments((1, 1)), (3, 3), (2, 2)), "2 ids do not fit 3 keys"),
        (lambda: block_map(Blocks(4, ((0,),)), (8, 8), (4, 4)), "do not reach position 7"),
        (lambda: patterns.longformer(4, dilation=2), "causal"),
        (lambda: patterns.bigbird(64, window=2), "odd"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            make()
        assert "\n" not in str(caught.value)
