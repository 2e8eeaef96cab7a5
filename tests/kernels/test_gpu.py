"""The GPU back ends, where the table of `test_attention` does not reach: tiles smaller than a block, Mosaic GPU's own
interpreter with its race detector (jax 0.11 and newer), and what each refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlm.attention.mask import Causal, Lambda, Window
from jaxlm.core.mask import Mask
from jaxlm.ops.block_map import block_map
from pallas_kernels.block_sparse_attention import call, mosaic_gpu, triton, xla
from pallas_kernels.block_sparse_attention.core import Options, Request
from pallas_kernels.landmark_attention import triton as landmark

HOPPER = Request("gpu", "NVIDIA H200", "bfloat16", 1, 4, 2, 64, 64, 256, 256, 128, 128)


@pytest.mark.parametrize("backend", [mosaic_gpu, triton])
def test_serves_what_it_is_for(backend: Any) -> None:
    for changes in ({}, {"width": 128, "value_width": 128}, {"dtype": "float16"}, {"data_q": 1, "data_k": 1},
                    {"traced": True, "own_lists": True}, {"bias": "fixed"}):  # fmt: skip
        assert backend.supports(dataclasses.replace(HOPPER, **changes)) is None
    size = backend.blocks(HOPPER)
    assert backend.supports(dataclasses.replace(HOPPER, block_q=size[0], block_k=size[1])) is None


@pytest.mark.parametrize(
    "backend, changes, words",
    [
        (mosaic_gpu, {"platform": "cpu", "chip": "cpu"}, "needs a Hopper GPU, not cpu"),
        (mosaic_gpu, {"chip": "NVIDIA A100"}, "needs a Hopper GPU, not NVIDIA A100"),
        (mosaic_gpu, {"dtype": "float32"}, "dtype float32 is not one of bfloat16, float16"),
        (mosaic_gpu, {"width": 96}, "head size 96"),
        (mosaic_gpu, {"value_width": 256}, "values 256"),
        (mosaic_gpu, {"block_q": 64}, "blocks of 64 x 128 are not multiples of 128"),
        (mosaic_gpu, {"bias": "trainable"}, "the bias is trainable"),
        (mosaic_gpu, {"bias": "tile"}, "no form for kernels"),
        (mosaic_gpu, {"tables": True}, "tables"),
        (triton, {"platform": "cpu"}, "needs a GPU, not cpu"),
        (triton, {"dtype": "float64"}, "dtype float64 is not one of float32, bfloat16, float16"),
        (triton, {"width": 512}, "head size 512 is over 256"),
        (triton, {"block_k": 40}, "blocks of 128 x 40 are not multiples of 16"),
        (triton, {"bias": "tile"}, "no form for kernels"),
        (triton, {"tables": True}, "tables"),
    ],
)
def test_refuses_with_a_reason(backend: Any, changes: dict[str, Any], words: str) -> None:
    assert words in (backend.supports(dataclasses.replace(HOPPER, **changes)) or "served")


@pytest.mark.parametrize(
    "period, changes, words",
    [
        (64, {"platform": "cpu"}, "needs a GPU, not cpu"),
        (64, {"dtype": "float64"}, "dtype float64"),
        (64, {"width": 256}, "head size 256 is over 128"),
        (51, {}, "blocks of 51 slots, of bfloat16: registers hold those of 16 or 32 or 64"),
        (128, {}, "blocks of 128 slots"),
        (32, {"dtype": "float32"}, "blocks of 32 slots, of float32"),
    ],
)
def test_refusals_of_landmark_attention_have_their_reason(period: int, changes: dict[str, Any], words: str) -> None:
    for served in ({}, {"dtype": "float32"}, {"width": 128, "value_width": 128}):
        assert landmark.supports(dataclasses.replace(HOPPER, **served), 64) is None
    assert words in (landmark.supports(dataclasses.replace(HOPPER, **changes), period) or "served")


def results(backend: Any, options: Options, mask: Mask, lengths: tuple[int, int], heads: tuple[int, int], **sizes: Any):
    """Output, log-sum-exp and the gradients of q, k and v, from drawn inputs."""
    sizes = {"width": 64, "value_width": 64, "dtype": jnp.float16, "blocks": (128, 128), "segments": None, **sizes}
    rng = np.random.default_rng(7)
    draw = lambda *shape, dtype=sizes["dtype"]: jnp.asarray(rng.standard_normal(shape), dtype)
    q, k = draw(1, lengths[0], heads[0], sizes["width"]), draw(1, lengths[1], heads[1], sizes["width"])
    v = draw(1, lengths[1], heads[1], sizes["value_width"])
    found = block_map(mask, lengths, sizes["blocks"], segment_ids=sizes["segments"])
    cotangents = draw(*q.shape[:3], v.shape[-1]), draw(1, heads[0], lengths[0], dtype=jnp.float32)

    def both(q, k, v):
        outs, pull = jax.vjp(lambda *args: call.attention(*args, found, None, options, backend), q, k, v)
        return *outs, *pull(cotangents)

    return [np.asarray(x, np.float64) for x in jax.jit(both)(q, k, v)]


def agree(got: list[np.ndarray], want: list[np.ndarray], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("tiles", [(16, 16), (64, 16), (16, 32)])
def test_triton_tiles_divide_blocks(tiles: tuple[int, int]) -> None:
    """A program's tile may be any part of a block, of its own rows and of those it walks."""
    options = Options(scale=0.2, soft_cap=4.0, interpret=True, tuning=(("tile", tiles[0]), ("other_tile", tiles[1])))
    arguments = Lambda(50, 3), (120, 150), (4, 2)
    sizes = {"width": 16, "value_width": 24, "dtype": jnp.float32, "blocks": (64, 32)}
    want = results(xla, dataclasses.replace(options, interpret=False, tuning=()), *arguments, **sizes)
    agree(results(triton, options, *arguments, **sizes), want, 2e-6)


SEGMENTS = np.repeat(np.arange(1, 4, dtype=np.int32), (90, 70, 96))[None]
INTERPRETABLE = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="jax before 0.11 cannot interpret Mosaic GPU kernels"
)


@INTERPRETABLE
@pytest.mark.slow
@pytest.mark.parametrize(
    "mask, lengths, heads, more",
    [
        (Causal(), (256, 256), (2, 1), {"segments": (SEGMENTS, SEGMENTS)}),
        (Window(70), (200, 330), (1, 1), {"dtype": jnp.bfloat16, "width": 128}),
        (Window(300) & ~Window(100), (256, 256), (1, 1), {}),
    ],
    ids=["documents, grouped", "window, fewer queries", "rows without a key"],
)
def test_mosaic_gpu_in_its_interpreter(mask: Mask, lengths: Any, heads: Any, more: dict[str, Any]) -> None:
    """Values and gradients, with no race between the copies, the products and the two halves of the queries."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    options = Options(scale=0.1, soft_cap=0.0)
    want = results(xla, options, mask, lengths, heads, **more)
    params = plgpu.InterpretGPUParams(detect_races=True)
    got = results(mosaic_gpu, dataclasses.replace(options, interpret=params), mask, lengths, heads, **more)
    some = np.isfinite(want[1])
    np.testing.assert_array_equal(np.isfinite(got[1]), some)
    got[1], want[1] = np.where(some, got[1], 0.0), np.where(some, want[1], 0.0)
    agree(got, want, 1.6e-2 if more.get("dtype") == jnp.bfloat16 else 2e-3)
    assert not interpret_pallas_call.get_races().races_found


@INTERPRETABLE
@pytest.mark.slow
def test_the_race_detector_sees_a_missing_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the wait for the filled buffers the same kernel has races."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    from pallas_kernels.block_sparse_attention import mosaic_gpu_tiles

    monkeypatch.setattr(mosaic_gpu_tiles.Ring, "wait", lambda self, step: None)
    options = Options(scale=0.1, interpret=plgpu.InterpretGPUParams(detect_races=True))
    try:
        results(mosaic_gpu, options, Causal(), (128, 128), (1, 1))
        raced = interpret_pallas_call.get_races().races_found
    except Exception as error:  # newer versions raise; unseen phases of a barrier raise too
        raced = "race" in str(error).lower() or "barrier" in str(error).lower()
    assert raced
