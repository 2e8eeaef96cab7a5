"""Edits of a cached text: a model of one layer has then read the new text; a deeper one goes on with the old behind."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.attention.mask import Window
from jaxlm.cache.full import Full
from jaxlm.core.errors import ConfigError
from jaxlm.decode.edit import edit_cache
from jaxlm.model import decoder
from jaxlm.position.lm_infinite import LmInfinite
from jaxlm.position.rotary import Rotary
from jaxlm.position.self_extend import SelfExtend
from jaxlm.position.streaming import Streaming
from tests.tiny import VOCABULARY, caller, close, layers_of, tiny, tokens_of

LENGTH, ROOM = 14, 24
TEXT, NEW = tokens_of(2, LENGTH), tokens_of(2, 3, seed=1)
FAR = Rotary(base=50.0)
YARN = Rotary(base=50.0, fraction=0.5, scaling={"name": "yarn", "args": {"factor": 3.0, "original": 64}})
ENCODINGS = {
    "rotary": FAR,
    "interleaved": Rotary(base=50.0, pairing="interleaved"),
    "yarn": YARN,
    "none": "none",
    "alibi": "alibi",
    "cope": {"name": "cope", "args": {"positions": 5}},
    "t5_bias": {"name": "t5_bias", "args": {"buckets": 6, "max_distance": 9}},
    "temperature": {"name": "temperature", "args": {"inner": "rotary", "rate": 0.5, "step": 3}},
    "self_extend": SelfExtend(FAR, window=4, group=3),
    "lm_infinite": LmInfinite(FAR, local=4, sinks=2, limit=5),
    "streaming": Streaming(FAR, sinks=2, window=4),
}
TURNED = ("rotary", "interleaved", "yarn")  # of which a cache may hold rotated keys or plain ones
# at, how many leave, how many come: insertions, deletions and replacements, at the start, in the middle, at the end.
EDITS = [(5, 0, 3), (LENGTH, 0, 3), (0, 3, 2), (4, 5, 0), (LENGTH - 2, 2, 0), (2, 0, 0)]


@functools.cache
def build(encoding="rotary", repeats=1):
    """A model by the name of its encoding, its parameters, and a jitted call."""
    spec = tiny({"position": ENCODINGS.get(encoding, encoding)}, {"ffn": None}, repeats=repeats)
    return jaxlm.LanguageModel(spec), layers_of(spec), caller(spec)


def cached(encoding="rotary", repeats=1, rotated=True, segments=None):
    """The state after the text."""
    model, params, call = build(encoding, repeats)
    return call(params, TEXT, segments, None, decoder.init_state(model.spec, 2, ROOM, Full(rotated=rotated)))[1]


def exact(tokens, encoding="rotary", repeats=1):
    """The logits of the full pass over a text, padded to one length for all tests."""
    _, params, call = build(encoding, repeats)
    padded = np.pad(tokens, ((0, 2 - len(tokens)), (0, ROOM - tokens.shape[1])))
    real = np.broadcast_to(np.arange(ROOM) < tokens.shape[1], padded.shape)
    return np.asarray(call(params, padded, real.astype(np.int32))[0])[: len(tokens), : tokens.shape[1]]


def edited(tokens, at, delete, insert):
    """The text that an edit makes, by rows."""
    rows = zip(tokens, np.broadcast_to(at, len(tokens)), insert, strict=True)
    return np.stack([np.concatenate((row[:i], new, row[i + delete :])) for row, i, new in rows])


@pytest.mark.parametrize(
    "encoding, rotated",
    [
        pytest.param(name, flag, marks=() if name in ("rotary", "none", "cope", "self_extend") else pytest.mark.slow)
        for name in ENCODINGS
        for flag in (True, False)
        if flag or name in TURNED
    ],
)
def test_one_layer_has_read_the_new_text(encoding, rotated):
    """Two edits, one after another: the new tokens, and what follows, read as in a full pass over the new text."""
    model, params, call = build(encoding)
    state, text = cached(encoding, rotated=rotated), TEXT
    assert rotated == state["layers"][0].rotated or encoding not in TURNED
    for at, new in [(5, NEW), (3, NEW[:, ::-1])]:
        state, logits = edit_cache(model, params, state, at, 2, new)
        text = edited(text, at, 2, new)
        close(logits, exact(text, encoding)[:, at : at + 3], 1e-4)
    np.testing.assert_array_equal(state["position"], text.shape[1])
    after = call(params, NEW, None, None, state)[0]
    close(after, exact(np.concatenate((text, NEW), 1), encoding)[:, -3:], 1e-4)


@pytest.mark.parametrize("at, delete, new", EDITS)
def test_every_place_and_kind(at, delete, new):
    """With places of its own for each row; slots are free again, and the last token may be read once more."""
    model, params, call = build()
    places = np.array([at, max(at - 1, 0)])
    state, _ = edit_cache(model, params, cached(), places, delete, NEW[:, :new])
    text = edited(TEXT, places, delete, NEW[:, :new])
    assert int(state["layers"][0].cursor) == text.shape[1]
    state, logits = edit_cache(model, params, state, text.shape[1] - 1, 1, text[:, -1:])
    close(logits[:, -1], exact(text)[:, -1], 1e-4)
    while text.shape[1] + 3 <= ROOM:  # as many as there is room for
        text = np.concatenate((text, NEW), 1)
        logits, state = call(params, NEW, None, None, state)
        close(logits, exact(text)[:, -3:], 1e-4)


def test_generation_goes_on():
    """Greedy steps from an edited cache are those from the whole new text."""
    model, params, call = build()
    text = edited(TEXT, 5, 2, NEW)
    state, _ = edit_cache(model, params, cached(), 5, 2, NEW)
    state, logits = edit_cache(model, params, state, text.shape[1] - 1, 1, text[:, -1:])
    tokens = []
    for _ in range(5):
        tokens.append(np.argmax(logits[:, -1], -1))
        logits, state = call(params, tokens[-1][:, None], None, None, state)
    np.testing.assert_array_equal(np.stack(tokens, 1), jaxlm.generate(model, params, text, 5))


def test_rows_with_padding_and_packed_documents():
    """The last document of a row is edited; padding, and the documents before, are left as they are."""
    model, params, call = build()
    segments = np.array([[0] * 4 + [1] * 10, [1] * 5 + [2] * 7 + [0] * 2], np.int32)
    state, logits = edit_cache(model, params, cached(segments=segments), 3, 2, NEW)
    more = call(params, NEW, np.array([[1] * 3, [2] * 3], np.int32), None, state)[0]
    for row, (start, stop) in enumerate([(4, 14), (5, 12)]):
        new = NEW[row : row + 1]
        text = edited(TEXT[row : row + 1, start:stop], 3, 2, new)
        assert int(state["position"][row]) == text.shape[1]
        full = exact(np.concatenate((text, new), 1))
        close(logits[row : row + 1], full[:, 3:6], 1e-4)
        close(more[row : row + 1], full[:, -3:], 1e-4)
    np.testing.assert_array_equal(state["segment"], [1, 2])


def test_a_deeper_model_keeps_what_it_knew():
    """Positions are right in all layers; the first layer's keys are those of the new text, the second's are stale."""
    model, params, call = build(repeats=2)
    state, _ = edit_cache(model, params, cached(repeats=2), 5, 2, NEW)
    text = edited(TEXT, 5, 2, NEW)
    full = call(params, text, None, None, decoder.init_state(model.spec, 2, ROOM, Full()))[1]

    def keys(state, layer):
        return np.asarray(state["layers"][layer].k)[:, :, : text.shape[1]]

    close(keys(state, 0), keys(full, 0), 1e-4)
    close(keys(state, 1)[:, :, :8], keys(full, 1)[:, :, :8], 1e-4)  # up to the new tokens
    assert np.abs(keys(state, 1) - keys(full, 1))[:, :, 8:].max() > 1e-3
    ours, whole = (jax.nn.log_softmax(call(params, NEW, None, None, each)[0]) for each in (state, full))
    drift = float((jnp.exp(whole) * (whole - ours)).sum(-1).mean())
    assert 1e-7 < drift < 1


def test_keys_that_stay_behind_are_wrong():
    """The control: the same edit with the keys behind it left at their old angles."""
    model, params, call = build()
    before = cached()["layers"][0].k
    state, _ = edit_cache(model, params, cached(), 5, 0, NEW)
    stale = dataclasses.replace(
        state["layers"][0], k=state["layers"][0].k.at[:, :, 8 : LENGTH + 3].set(before[:, :, 5:LENGTH])
    )
    full = exact(np.concatenate((edited(TEXT, 5, 0, NEW), NEW), 1))[:, -3:]
    wrong = call(params, NEW, None, None, {**state, "layers": (stale,)})[0]
    close(call(params, NEW, None, None, state)[0], full, 1e-4)
    assert np.abs(wrong - full).max() > 1e-2


@pytest.mark.parametrize(
    "edit, match",
    [
        ({"at": LENGTH + 1}, "holds 0 to 14"),
        ({"at": -1}, "holds 0 to 14"),
        ({"at": 12, "delete": 3}, "holds 0 to 14"),
        ({"at": [3]}, "at: expected an integer or 2"),
        ({"at": 1.5}, "at: expected an integer"),
        ({"at": 3, "delete": -1}, "delete: expected"),
        ({"at": 3, "insert": [VOCABULARY]}, "outside the vocabulary"),
        ({"at": 3, "insert": [[1, 2]]}, r"integers \[n\] or \[2, n\]"),
        ({"at": 3, "delete": 1, "insert": [1] * (ROOM - LENGTH + 2)}, "25 slots; the cache has 24"),
    ],
)
def test_bad_edits(edit, match):
    model, params, _ = build()
    state = cached()
    with pytest.raises(ConfigError, match=match) as caught:
        edit_cache(model, params, state, **edit)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "position, cache, match",
    [
        ({"name": "learned", "args": {"size": 40}}, "full", "'learned' is added to the tokens"),
        ("sinusoidal", "full", "'sinusoidal' is added to the tokens"),
        ("abacus", "full", "'abacus' is added to the tokens"),
        ("randomized", "full", "'randomized' draws"),
        ("forgetting", "full", "'forgetting' counts along the text"),
        ("rotary", {"name": "window_sink", "args": {"window": 8}}, "layer 0 holds WindowSinkCache"),
    ],
)
def test_models_that_cannot_be_edited(position, cache, match):
    mask = "causal" if cache == "full" else Window(8)
    spec = tiny({"position": position, "mask": mask}, {"ffn": None}, repeats=1)
    model, params = jaxlm.LanguageModel(spec), layers_of(spec)
    state = caller(spec)(params, TEXT, None, None, jaxlm.init_state(model, 2, ROOM, cache))[1]
    with pytest.raises(ConfigError, match=match) as caught:
        edit_cache(model, params, state, 3, 1)
    assert "\n" not in str(caught.value)


def test_an_empty_cache_has_nothing_to_edit():
    model, params, _ = build()
    with pytest.raises(ConfigError, match="not all cached"):
        edit_cache(model, params, jaxlm.init_state(model, 2, ROOM), 0, 0, [1])
