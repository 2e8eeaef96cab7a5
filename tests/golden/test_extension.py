"""Golden vectors of training-free context extension, from the authors' code: outputs of attention, and cached keys.

Shapes and settings come from the files; the tolerances are those of the README beside them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.mask import Causal, Lambda, dense
from jaxlm.cache.edit import close_room, make_room, rerotate
from jaxlm.cache.full import Full
from jaxlm.cache.window_sink import WindowSink
from jaxlm.core.mask import Mask
from jaxlm.core.types import Context, PositionEncoding
from jaxlm.mixer.attend import Held, attend, hold
from jaxlm.position.lm_infinite import LmInfinite
from jaxlm.position.rotary import Rotary
from jaxlm.position.self_extend import SelfExtend
from jaxlm.position.streaming import Streaming
from tests.golden.test_positions import close, files

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "xla"])


def heads_last(data: dict[str, np.ndarray]) -> list[jnp.ndarray]:
    """q, k and v as [B, T, H, D]; the files have [B, H, T, D]."""
    return [jnp.asarray(data[name]).swapaxes(1, 2) for name in "qkv"]


def whole(position: PositionEncoding, mask: Mask, data: dict[str, np.ndarray], **options: Any) -> np.ndarray:
    """Attention over all tokens at once, [B, H, T, D]."""
    q, k, v = heads_last(data)
    if "sharpness" in options:
        q = q * options.pop("sharpness")
    places = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    held = Held(k, v, places, None, None, rotated=False)
    out = attend(position, {}, q, held, v, Context(places), mask=mask, own=True, **options)
    return np.asarray(out).swapaxes(1, 2)


@IMPLEMENTATIONS
def test_self_extend(golden, implementation):
    for data in files(golden, "self_extend"):
        window, group = int(data["neighbor_window"]), int(data["group_size"])
        position = SelfExtend(Rotary(base=float(data["rope_theta"])), window=window, group=group)
        close(whole(position, Causal(), data, implementation=implementation), data["out"])
        # The factor of the queries that the paper offers: max(1, ln(i + 1) / ln n).
        length = data["q"].shape[2]
        sharpness = np.maximum(1, np.log(np.arange(length) + 1) / np.log(int(data["logn_base"])))
        sharp = whole(
            position, Causal(), data, implementation=implementation, sharpness=jnp.float32(sharpness)[:, None, None]
        )
        close(sharp, data["out_logn"])


@IMPLEMENTATIONS
def test_lm_infinite(golden, implementation):
    for data in files(golden, "lm_infinite"):
        length = data["q"].shape[2]
        position = LmInfinite(
            Rotary(base=float(data["rope_theta"])),
            local=int(data["local_branch"]),
            sinks=int(data["global_branch"]),
            limit=min(int(data["limit_distance"]), length - 1),  # as the authors' code has it
        )
        mask, places = position.mask(), jnp.arange(length)[None]
        np.testing.assert_array_equal(dense(mask, places, places)[0, 0], data["mask"])
        close(whole(position, mask, data, implementation=implementation), data["out"])


def streaming_of(data: dict[str, np.ndarray]) -> Streaming:
    rotary = Rotary(base=float(data["rope_theta"]))
    return Streaming(rotary, sinks=int(data["start_size"]), window=int(data["recent_size"]))


@IMPLEMENTATIONS
def test_streaming_llm_in_one_pass(golden, implementation):
    for data in files(golden, "streaming_llm"):
        position = streaming_of(data)
        close(whole(position, position.mask(), data, implementation=implementation), data["out"])


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_streaming_llm_through_the_cache(golden, size):
    """In pieces of any size: the outputs, and at each end of a piece the tokens that are kept."""
    for data in files(golden, "streaming_llm"):
        position = streaming_of(data)
        q, k, v = heads_last(data)
        batch, length, groups, width = k.shape
        policy = WindowSink(position.sinks, position.window)
        state = policy.init(batch, length, groups, width, jnp.float32, pre_rotate=position.pre_rotate)

        @jax.jit
        def read(q, k, v, places, state, position=position):
            held, state = hold(position, {}, q, k, v, Context(places), state)
            return attend(position, {}, q, held, held.v, Context(places), mask=position.mask(), own=False), state

        for start in range(0, length, size):
            at = slice(start, start + size)
            places = jnp.arange(length, dtype=jnp.int32)[None, at]
            out, state = read(q[:, at], k[:, at], v[:, at], places, state)
            close(np.asarray(out).swapaxes(1, 2), data["out"][:, :, at])
            last = min(start + size, length) - 1
            kept = np.sort(np.asarray(state.position)[0][np.asarray(state.segment)[0] != 0])
            expected = data["kept_token_ids"][last]
            np.testing.assert_array_equal(kept, expected[expected >= 0])


def test_streaming_llm_distances(golden):
    """The rotated keys of the last step, which stand at their slots: scores depend on slots alone."""
    for data in files(golden, "streaming_llm"):
        position = streaming_of(data)
        rotary, length, size = position.inner, data["q"].shape[2], data["k_rot_last"].shape[2]
        kept = data["kept_token_ids"][-1]
        assert (kept >= 0).all() and length > size
        q, k, _ = heads_last(data)
        last, places = jnp.int32([[length - 1]]), jnp.asarray(kept, jnp.int32)[None]
        slot_q = rotary.rotate({}, q[:, -1:], jnp.int32([[size - 1]]), None)
        expected = jnp.einsum("bqhd,bhkd->bhqk", slot_q, data["k_rot_last"])
        views = position.views({}, q[:, -1:], k[:, kept], last, places, None)
        scores = jnp.zeros_like(expected)
        for view_q, view_k, region in views:
            inside = True if region is None else dense(region, last, places)
            scores = jnp.where(inside, jnp.einsum("bqhd,bkhd->bhqk", view_q, view_k), scores)
        close(scores, expected)
        assert isinstance(position.mask(), Lambda)


def test_pie_moves_rotated_keys(golden):
    """Keys that are stored rotated, after an insertion or a deletion in front of them."""
    for data in files(golden, "pie_rerotate"):
        rotary, keys = Rotary(base=float(data["rope_theta"])), jnp.asarray(data["k_cached"])
        heads, length, width = keys.shape
        places = jnp.arange(length, dtype=jnp.int32)[None]
        close(
            rotary.rotate({}, jnp.asarray(data["k_unrotated"]).swapaxes(0, 1)[None], places, None)[0],
            keys.swapaxes(0, 1),
        )
        deleted, inserted = int(data["deleted"]), int(data["inserted"])
        cache = Full().init(1, length + inserted, heads, width, jnp.float32, pre_rotate=True)
        ones = jnp.ones((1, length), jnp.int32)
        cache, _ = cache.append(keys.swapaxes(0, 1)[None], jnp.zeros((1, length, heads, width)), places, ones)
        frequencies = rotary.frequencies({}, width)
        move = lambda k, shift, f=frequencies: rerotate(k, shift, f, "half")
        after = make_room(cache, ones[:, 0], jnp.int32([int(data["edit_at"])]), deleted, inserted, move)
        kept = np.asarray(after.segment)[0] != 0
        np.testing.assert_array_equal(np.asarray(after.position)[0][kept], data["new_positions"])
        close(np.asarray(after.k)[0][:, kept], data["k_after"])
        assert after.cursor.tolist() == [int(data["edit_at"])] and kept.sum() == length - deleted
        assert int(close_room(after, each_row=False).cursor) == length - deleted + inserted
