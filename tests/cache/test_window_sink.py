"""The cache that forgets: it shows what the full pass sees, however tokens come, and never grows."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.attention.mask import Lambda, Window
from jaxlm.cache.window_sink import WindowSink
from jaxlm.core.errors import ConfigError
from jaxlm.model import decoder
from jaxlm.position.lm_infinite import LmInfinite
from jaxlm.position.rotary import Rotary
from jaxlm.position.streaming import Streaming
from tests.tiny import VOCABULARY, caller, close, count_positions, layers_of, params_of, stream, tiny, tokens_of

SINKS, WINDOW, LENGTH = 2, 5, 24
ROTARY = Rotary(base=50.0)
STREAMING = Streaming(ROTARY, SINKS, WINDOW)
INFINITE = LmInfinite(ROTARY, local=WINDOW, sinks=SINKS, limit=WINDOW)

# A position encoding, the mask that the cache is for, and the cache.
CASES: dict[str, tuple[Any, Any, WindowSink]] = {
    "streaming": (STREAMING, STREAMING.mask(), WindowSink(SINKS, WINDOW)),
    "streaming in more room": (STREAMING, STREAMING.mask(), WindowSink(SINKS + 1, WINDOW + 3)),
    "streaming, no sinks": (Streaming(ROTARY, 0, WINDOW), Window(WINDOW), WindowSink(0, WINDOW)),
    "lm_infinite": (INFINITE, INFINITE.mask(), WindowSink(SINKS, WINDOW)),
    "rotary": (ROTARY, Window(WINDOW), WindowSink(0, WINDOW)),
    "alibi": ("alibi", Lambda(WINDOW, SINKS), WindowSink(SINKS, WINDOW)),
    "forgetting": ("forgetting", Lambda(WINDOW, SINKS), WindowSink(SINKS, WINDOW)),
}
every = pytest.mark.parametrize("case", CASES)

# Whole; padded left, and in mid-stream; packed, the last document shorter than the one before it.
ROWS = [[1] * LENGTH, [0] * 7 + [1] * 17, [1] * 9 + [0] * 6 + [1] * 9, [1] * 3 + [2] * 15 + [0] + [3] * 5]
SEGMENTS = np.asarray(ROWS, np.int32)
REAL, POSITIONS, TOKENS = SEGMENTS != 0, count_positions(SEGMENTS), tokens_of(*SEGMENTS.shape)
PIECES = [(1,) * LENGTH, (LENGTH,), (4, 1, 1, 4, 10, 4)]


def model(case: str):
    position, mask, cache = CASES[case]
    spec = tiny({"position": position, "mask": mask}, repeats=2 if case == "streaming" else 1)
    return spec, layers_of(spec), caller(spec), cache


@every
def test_full_pass_is_pieces_is_single_steps(case):
    spec, params, call, cache = model(case)
    full = np.asarray(call(params, TOKENS, SEGMENTS, POSITIONS)[0])
    for pieces in PIECES:
        parts = stream(spec, call, params, TOKENS, pieces, SEGMENTS, POSITIONS, cache)
        close(parts[REAL], full[REAL])


@pytest.mark.parametrize("case", ["streaming in more room", "forgetting"])
def test_is_the_full_cache(case):
    """Without segments or positions of the caller's, and after positions that leave gaps."""
    spec, params, call, cache = model(case)
    rising = np.sort(np.random.default_rng(0).permuted(np.tile(np.arange(60), (4, 1)), axis=1)[:, :LENGTH], axis=1)
    for positions in (None, rising.astype(np.int32)):
        full = stream(spec, call, params, TOKENS, (LENGTH,), None, positions)
        close(stream(spec, call, params, TOKENS, PIECES[2], None, positions, cache), full)


def test_streaming_has_forgotten(case="streaming"):
    """What is neither a sink nor within reach of as many layers as there are changes nothing; a sink does."""
    spec, params, call, cache = model(case)
    ones = np.ones_like(SEGMENTS)

    def last(token: int) -> np.ndarray:
        tokens = TOKENS.copy()
        tokens[:, token] = (tokens[:, token] + 1) % VOCABULARY
        return stream(spec, call, params, tokens, PIECES[2], ones, None, cache)[:, -1]

    before = stream(spec, call, params, TOKENS, PIECES[2], ones, None, cache)[:, -1]
    np.testing.assert_array_equal(last(SINKS + 3), before)
    assert np.abs(last(0) - before).max() > 1e-3
    assert np.abs(last(LENGTH - 3) - before).max() > 1e-3


def test_distances_stay_exact_far_out():
    """2^24 positions on, where float32 no longer holds the whole numbers, tokens read as they did."""
    spec, params, call, cache = model("streaming")
    ones, places = np.ones_like(SEGMENTS), np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)
    here = stream(spec, call, params, TOKENS, (4, 10, 10), ones, places + 1000, cache)
    there = stream(spec, call, params, TOKENS, (4, 10, 10), ones, places + (1 << 24) + 1001, cache)
    close(there, here)


def sizes(state: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(state)]


def test_memory_is_flat():
    spec, params, call, cache = model("streaming")
    few, many = (decoder.init_state(spec, 2, length, cache) for length in (1, 10**9))
    assert sizes(few) == sizes(many)
    state = few
    for size in (1, 40, 3):
        _, state = call(params, TOKENS[:2, np.arange(size) % LENGTH], None, None, state)
        assert sizes(state) == sizes(few)
    kept = np.asarray(state["layers"][0].position)[0]
    assert sorted(kept) == [0, 1, *range(44 - WINDOW, 44)]


def test_generation_equals_full_passes():
    """Prompts shorter and longer than the cache, padded to one length."""
    spec, _, call, cache = model("streaming")
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params_of(spec))
    lengths, new = np.array([12, 3]), 12
    got = np.asarray(
        jaxlm.generate(jaxlm.LanguageModel(spec), params, TOKENS[:2, :12], new, prompt_lengths=lengths, cache=cache)
    )
    tokens, rows = np.pad(TOKENS[:2, :12], ((0, 0), (0, new))), np.arange(2)
    for step in range(new):
        logits = np.asarray(call(params, tokens)[0])
        tokens[rows, lengths + step] = logits[rows, lengths + step - 1].argmax(-1)
    np.testing.assert_array_equal(got, [row[n : n + new] for row, n in zip(tokens, lengths, strict=True)])


def test_a_hundred_thousand_tokens_in_constant_memory(new=100_000):
    """The last of the tokens are those that a full pass over what the cache should hold would choose."""
    position, beginning, tail = Streaming(Rotary(), sinks=2, window=14), TOKENS[:1, :3], 50
    spec = tiny({"position": position, "mask": position.mask()}, {"ffn": None}, repeats=1)
    model, cache = jaxlm.LanguageModel(spec), WindowSink(2, 14)
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params_of(spec))
    slots = jaxlm.init_state(model, 1, beginning.size + new, cache)["layers"][0].position.shape
    assert slots == (1, 16)
    out = np.asarray(jaxlm.generate(model, params, beginning, new, cache=cache))
    text = np.concatenate((beginning, out), 1)[:, :-1]
    places = np.r_[:2, text.shape[1] - tail - 14 : text.shape[1]].astype(np.int32)[None]
    logits, _ = caller(spec)(params, text[:, places[0]], None, places)
    np.testing.assert_array_equal(out[:, -tail:], np.asarray(logits)[:, -tail:].argmax(-1))


@pytest.mark.parametrize("args, match", [({"sinks": -1}, "WindowSink.sinks"), ({"window": 0}, "WindowSink.window")])
def test_bad_settings(args, match):
    with pytest.raises(ConfigError, match=match) as caught:
        WindowSink(**args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mask, shown", [("causal", "any number"), (Window(9), "9"), (Lambda(6, 3), "9")])
def test_a_mask_that_shows_more_than_is_held(mask, shown):
    model = jaxlm.LanguageModel(tiny({"mask": mask}))
    with pytest.raises(ConfigError, match=f"holds 8 keys, and the model's mask shows {shown}") as caught:
        jaxlm.init_state(model, 1, 20, WindowSink(sinks=2, window=6))
    assert "\n" not in str(caught.value)
    jaxlm.init_state(jaxlm.LanguageModel(tiny({"mask": Lambda(6, 2)})), 1, 20, WindowSink(sinks=2, window=6))
