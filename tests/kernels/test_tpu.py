"""What is particular to the TPU kernels: the walk of the grid, copies and races, and lists beyond scalar memory.

That they compute attention is held by the table of cases in test_attention.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.attention.mask import Blocks, Causal, Segments, Window
from jaxlm.core.mask import Mask
from jaxlm.ops.attention import attention
from jaxlm.ops.block_map import block_map
from jaxlm.ops.landmark import landmark_attention
from pallas_kernels.block_sparse_attention import tpu
from pallas_kernels.block_sparse_attention.call import aimed_at
from pallas_kernels.block_sparse_attention.core import BlockMask, Options, Request
from pallas_kernels.block_sparse_attention.lists import pack
from pallas_kernels.block_sparse_attention.tpu_parts import Parts, parts_of
from pallas_kernels.block_sparse_attention.tpu_steps import DEAD, FIRST, LAST, Fields, most_tiles, steps_of
from pallas_kernels.landmark_attention import tpu as landmark_tpu

REQUEST = Request(
    "tpu", "TPU v6 lite", "bfloat16", 1, 8, 4, 128, 128, 4096, 4096, 512, 512, list_width=8, column_width=8
)


@pytest.mark.parametrize("shares", [1, 2, 4])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_the_walk_meets_every_tile_once_in_order(shares: int, density: float) -> None:
    rng = np.random.default_rng(0)
    rows, columns = 7, 5
    some = rng.random((2, 4, rows, columns)) < density
    some[0, :, 3] = False  # a row that meets nothing
    every = some & (rng.random(some.shape) < 0.5)
    fields = Fields.of(rows, shares, columns)
    steps = steps_of(pack(some, every), fields, rows * columns, shares)
    assert steps.places.shape == (2, 4 // shares, steps.live)
    for (b, h), _ in np.ndenumerate(steps.places[..., 0]):
        found, inside, written, before = [], None, [], None
        for place, kind in zip(steps.places[b, h], steps.kinds[b, h], strict=True):
            row, share, index = fields.unpack(place)
            if place & FIRST:
                assert inside is None, "a row starts within another"
                inside = row
                written.append(row)
            if place & DEAD:
                assert before in (None, (share, index)), "a dead step would copy a block"
            else:
                assert inside == row
                found.append((row, share, index, kind & 1))
            before = share, index
            if place & LAST:
                inside = None
        assert inside is None and written == list(range(rows))
        maps = [(some[b, h * shares + s], every[b, h * shares + s]) for s in range(shares)]
        assert found == [
            (r, s, c, int(full[r, c]))
            for r in range(rows)
            for s, (seen, full) in enumerate(maps)
            for c in range(columns)
            if seen[r, c]
        ]


def test_a_traced_walk_is_the_static_one() -> None:
    rng = np.random.default_rng(1)
    some = rng.random((2, 4, 6, 6)) < 0.4
    most = int(some.sum((2, 3)).max())
    lists, fields = pack(some, some), Fields.of(6, 2, 6)
    static = steps_of(lists, fields, 36, 2)
    traced = jax.jit(lambda lists: steps_of(lists, fields, most, 2))(jax.tree.map(jnp.asarray, lists))
    assert int(traced.live) == static.live < traced.places.shape[-1] == 2 * most + 6
    np.testing.assert_array_equal(traced.places[..., : static.live], static.places)
    np.testing.assert_array_equal(traced.kinds[..., : static.live], static.kinds)


def test_the_grid_is_as_long_as_the_live_tiles() -> None:
    """A causal mask costs half of the square's steps, and a traced window no more than its own tiles."""
    q = jax.ShapeDtypeStruct((1, 512, 1, 16), jnp.float32)
    with aimed_at(interpret=True):
        run = lambda q: attention(q, q, q, mask=Causal(), block_sizes=(64, 64), implementation="tpu")
        text = str(jax.make_jaxpr(run)(q))
    assert "grid=(1, 1, 36, 1)" in text
    lists = pack(*2 * (np.tri(8, dtype=bool)[None, None],))
    assert steps_of(lists, Fields.of(8, 1, 8), 36).live == 36


def test_a_full_tile_never_asks_the_mask() -> None:
    static = block_map(Window(1000), (64, 64), (32, 32))
    rows = static.rows._replace(kinds=static.rows.kinds | 1)
    mask = dataclasses.replace(static, rows=rows, see=lambda *_: jnp.bool_(False))
    q = jax.random.normal(jax.random.key(0), (1, 1, 64, 16))
    out, _ = tpu.forward(q, q, q, mask, None, Options(1.0, interpret=True))
    assert float(jnp.abs(out).min(-1).max()) > 0 and bool(jnp.isfinite(out).all())


def test_log_sum_exp_is_written_as_rows() -> None:
    mask = block_map(Causal(), (256, 256), (128, 128))
    q = jax.ShapeDtypeStruct((1, 2, 256, 64), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda q: tpu.forward(q, q, q, mask, None, Options(1.0, interpret=True)))(q)
    shapes = {x.aval.shape for eqn in jaxpr.eqns for x in eqn.outvars if "pallas" in str(eqn.primitive)}
    assert shapes == {(1, 2, 256, 64), (1, 2, 1, 256)}


def found_races(run: Callable[[], Any]) -> bool:
    """Whether the interpreter saw a race: it raises (from jax 0.12) or sets a flag."""
    pltpu.reset_tpu_interpret_mode_state()
    try:
        jax.block_until_ready(run())
    except RuntimeError as error:
        if "race" not in str(error).lower():
            raise
        return True
    races = interpret_pallas_call.races
    return races is not None and races.races_found


RACES = pltpu.InterpretParams(detect_races=True, dma_execution_mode="on_wait")


def test_the_detector_detects() -> None:
    def read_too_early(x: Any, out: Any, buffer: Any, done: Any) -> None:
        copy = pltpu.make_async_copy(x, buffer, done)
        copy.start()
        out[...] = buffer[...] * 2
        copy.wait()

    x = jnp.ones((8, 128))
    run = pl.pallas_call(
        read_too_early,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA],
        interpret=RACES,
    )
    assert found_races(lambda: run(x))


def ids(length: int) -> np.ndarray:
    return np.repeat(np.arange(1, 4, dtype=np.int32), [length // 4, length // 2, length // 4])


@pytest.mark.parametrize(
    "mask",
    [Window(40), Causal() & Segments(ids(128)), Causal() & Blocks(32, np.zeros((1, 4, 4, 2), np.int32) + [0, 3])],
    ids=["window", "documents", "lists by head"],
)
@pytest.mark.slow
def test_no_races(mask: Mask) -> None:
    """Forward and backward with copies that happen as late as they may; the values must be right too."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, 128, h, 16)) for key, h in zip(keys, (4, 2, 2), strict=True))

    def gradients(**options: Any) -> Any:
        loss = lambda q, k, v: jnp.sin(attention(q, k, v, mask=mask, **options)).sum()
        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    got = []
    with aimed_at(interpret=RACES):
        assert not found_races(lambda: got.append(gradients(implementation="tpu", block_sizes=(32, 32))))
    for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(gradients(implementation="reference")), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_no_races_of_landmark_attention() -> None:
    q, k, v = (jax.random.normal(key, (1, 256, 1, 16)) for key in jax.random.split(jax.random.key(0), 3))

    def gradients(implementation: str) -> Any:
        loss = lambda q, k, v: jnp.sin(landmark_attention(q, k, v, period=16, implementation=implementation)).sum()
        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    got = []
    with aimed_at(interpret=RACES):
        assert not found_races(lambda: got.append(gradients("tpu")))
    for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(gradients("reference")), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("period", "change", "words"),
    [
        (51, {}, "blocks of 51 slots"),
        (1000, {}, "blocks of 1000 slots"),
        (64, {"platform": "cpu"}, "needs a TPU, not cpu"),
        (64, {"dtype": "float16"}, "float16"),
        (64, {"length_q": 2**20, "length_k": 2**20}, "scalar memory"),
    ],
)
def test_refusals_of_landmark_attention_have_their_reason(period: int, change: dict[str, Any], words: str) -> None:
    assert landmark_tpu.supports(REQUEST, 64) is None and landmark_tpu.blocks(REQUEST, 64) == (512, 512)
    reason = landmark_tpu.supports(dataclasses.replace(REQUEST, **change), period)
    assert reason and words in reason and "\n" not in reason


@pytest.mark.parametrize(
    ("memory", "parts"), [(2**20, Parts(1, 1)), (4 * (4 * 3 + 4) * 8, Parts(2, 1)), (2 * (4 * 3 + 4) * 8, Parts(2, 2))]
)
def test_lists_beyond_scalar_memory_are_cut(memory: int, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    some = rng.random((2, 4, 4, 4)) < 0.6
    some[..., 0] = True
    indices = np.where(some, np.arange(4), -1).astype(np.int32)
    mask, data = Causal() & Blocks(32, indices), np.stack([ids(128), ids(128)[::-1]])
    q, k, v = (jnp.asarray(rng.standard_normal((2, 128, h, 16)), jnp.float32) for h in (4, 2, 2))
    monkeypatch.setattr(tpu, "SCALAR_MEMORY", memory)
    found = block_map(mask, (128, 128), (32, 32))
    assert parts_of(found.rows, most_tiles(found.rows, found.columns), 2, memory) == parts

    def gradients(**options: Any) -> Any:
        loss = lambda q, k, v: jnp.sin(attention(q, k, v, mask=mask, segment_ids=data, **options)).sum()
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

    with aimed_at(interpret=True):
        got = gradients(implementation="tpu", block_sizes=(32, 32))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(gradients(implementation="reference")), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"platform": "gpu"}, "needs a TPU, not gpu"),
        ({"chip": "TPU v3"}, "scalar memory"),
        ({"dtype": "float16"}, "float16 is not one of"),
        ({"width": 512}, "head size 512"),
        ({"block_q": 64}, "multiples of 128"),
        ({"block_q": 2048, "block_k": 1024}, "over 1048576 scores"),
        ({"tables": True}, "tables"),
        ({"bias": "tile"}, "Bias.at"),
        ({"data_q": 100}, "100 numbers per token"),
        ({"tiles": 2**17}, "scalar memory"),
        ({"tiles": 2**16, "own_lists": True}, "scalar memory"),
        ({"length_q": 2**20, "length_k": 2**20, "list_width": 2**11, "column_width": 2**11}, "scalar memory"),
    ],
)
def test_refusals_have_their_reason(change: dict[str, Any], words: str) -> None:
    assert tpu.supports(REQUEST) is None
    reason = tpu.supports(dataclasses.replace(REQUEST, **change))
    assert reason and words in reason and "\n" not in reason


@pytest.mark.parametrize(
    ("change", "sides"),
    [
        ({}, (1024, 1024)),
        ({"chip": "TPU v5 lite"}, (512, 512)),
        ({"dtype": "float32"}, (512, 512)),
        ({"grain": 128}, (128, 128)),
        ({"length_q": 200, "length_k": 1100}, (256, 256)),
        ({"length_q": 1}, (128, 1024)),
    ],
)
def test_default_blocks(change: dict[str, Any], sides: tuple[int, int]) -> None:
    assert tpu.blocks(dataclasses.replace(REQUEST, **change)) == sides


def test_every_kernel_states_its_cost() -> None:
    mask: BlockMask = block_map(Causal(), (256, 256), (128, 128))
    q = jnp.zeros((1, 2, 256, 64), jnp.bfloat16)
    row = jnp.zeros((1, 2, 256))
    options = Options(1.0, interpret=True)
    flops = []
    for run in (
        lambda: tpu.forward(q, q, q, mask, None, options),
        lambda: tpu.backward(q, q, q, mask, None, options, row, row, q),
    ):
        for eqn in jax.make_jaxpr(run)().eqns:
            if eqn.primitive.name == "pallas_call":
                flops.append(eqn.params["cost_estimate"].flops)
    pairs = 2 * 3 * 128 * 128  # two heads, three tiles
    assert flops == [2 * 2 * 64 * pairs, 3 * 2 * 64 * pairs, 4 * 2 * 64 * pairs]
