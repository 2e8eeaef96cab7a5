"""Training-free extension of rotary models: what each method is at its edges, and what it refuses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.attention.mask import Causal, Lambda, Window
from jaxlm.core.config import make
from jaxlm.core.errors import ConfigError
from jaxlm.model import decoder
from jaxlm.position.alibi import Alibi
from jaxlm.position.lm_infinite import LmInfinite
from jaxlm.position.rotary import Rotary
from jaxlm.position.self_extend import SelfExtend
from jaxlm.position.streaming import Streaming
from tests.tiny import caller, close, params_of, stream, tiny, tokens_of

LENGTH = 20
TOKENS = tokens_of(2, LENGTH)
ROTARY = Rotary(base=50.0)
YARN = Rotary(scaling={"name": "yarn", "args": {"factor": 3.0, "original": 64}})


def logits(position, mask=None) -> np.ndarray:
    spec = tiny({"position": position, "mask": mask or Causal()}, {"ffn": None}, repeats=1)
    return np.asarray(caller(spec)(params_of(spec), TOKENS)[0])


@pytest.mark.parametrize("rotary", [ROTARY, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize(
    "changed",
    [
        lambda rotary: SelfExtend(rotary, window=LENGTH, group=4),
        lambda rotary: SelfExtend(rotary, window=3, group=1),
        lambda rotary: LmInfinite(rotary, local=LENGTH, sinks=1, limit=2),
        lambda rotary: Streaming(rotary, sinks=4, window=LENGTH - 4),
        lambda rotary: Streaming(rotary, sinks=0, window=3),
    ],
    ids=["self_extend, no far keys", "self_extend, groups of one", "lm_infinite", "streaming", "streaming, no sinks"],
)
def test_within_its_window_it_is_the_rotary_model(rotary, changed):
    """The streaming encoding without sinks is plain positions, whatever its window: the mask does the rest."""
    close(logits(changed(rotary)), logits(rotary))


def score(position, i: int, j: int) -> float:
    """The logit of one query and one key, of the view that holds them."""
    x = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
    at = [jnp.int32([[n]]) for n in (i, j)]
    found = [
        float(jnp.vdot(q, k))
        for q, k, region in position.views({}, *map(jnp.asarray, x), *at, None)
        if region is None or region.pointwise(*at)[0, 0]
    ]
    assert len(found) == 1
    return found[0]


def rotary_score(i: float, j: float) -> float:
    x = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
    turn = lambda x, at: ROTARY.rotate({}, jnp.asarray(x), jnp.float32([[at]]), None)
    return float(jnp.vdot(turn(x[0], i), turn(x[1], j)))


@pytest.mark.parametrize("window, group", [(6, 3), (5, 3), (4, 8)])
def test_distances_of_self_extend(window, group):
    """The shift W - W / G is not rounded."""
    position = SelfExtend(ROTARY, window=window, group=group)
    for i in (0, 3, 7, 22, 40):
        for j in range(0, i + 1, 3):
            far = i - j >= window
            expected = (i // group + window - window / group, j // group) if far else (i, j)
            np.testing.assert_allclose(score(position, i, j), rotary_score(*expected), atol=1e-5)


def test_distances_of_lm_infinite_and_streaming():
    infinite, streaming = LmInfinite(ROTARY, local=4, sinks=2, limit=7), Streaming(ROTARY, sinks=2, window=5)
    for i in (0, 3, 5, 6, 7, 22):
        for j in range(i + 1):
            ceiling = i - j if i - j < 4 else 7
            np.testing.assert_allclose(score(infinite, i, j), rotary_score(ceiling, 0), atol=1e-5)
            if j < 2 or i - j < 5:
                slot = min(i, 6) - j if j < 2 else i - j
                np.testing.assert_allclose(score(streaming, i, j), rotary_score(slot, 0), atol=1e-5)


def test_alibi_is_capped():
    position = LmInfinite(Alibi(), local=4, sinks=2, limit=4)
    assert position.pre_rotate
    q = k = jnp.zeros((1, 12, 4, 8))
    places = jnp.arange(12, dtype=jnp.int32)[None]
    free, capped = (one.bias({}, q, k, places, places).tile(places, places) for one in (Alibi(), position))
    distance = np.abs(np.arange(12)[:, None] - np.arange(12))
    slopes = -np.asarray(free)[0, :, 1, 0]
    close(free[0], -slopes[:, None, None] * distance)
    close(capped[0], -slopes[:, None, None] * np.minimum(distance, 4))


def test_masks_come_with_their_encodings():
    assert LmInfinite(local=7, sinks=3).mask() == Lambda(7, 3)
    assert Streaming(sinks=3, window=7).mask() == Lambda(7, 3)
    assert Streaming(sinks=0, window=7).mask() == Window(7)
    model = jaxlm.LanguageModel(tiny({"position": "rotary"}))
    position = LmInfinite(Rotary(), local=7, sinks=3, limit=7)
    changed = jaxlm.replace(model, {"mixer.position": position, "mixer.mask": position.mask()})
    mixer = changed.spec.layers[0].pattern[0].mixer
    assert mixer.position == position and mixer.mask == Lambda(7, 3)


def test_scalings_that_depend_on_the_length():
    """With the length declared, pieces are the full pass; without, each row scales for its own."""
    dynamic = Rotary(base=50.0, scaling={"name": "dynamic", "args": {"original": 8}})
    for position in (SelfExtend(dynamic, window=4, group=3), Streaming(dynamic, sinks=2, window=6)):
        mask = position.mask() if isinstance(position, Streaming) else Causal()
        spec = tiny({"position": position, "mask": mask}, {"ffn": None}, repeats=1)
        params, call = decoder.unstack(params_of(spec)), caller(spec, LENGTH)
        full = np.asarray(call(params, TOKENS)[0])
        close(stream(spec, call, params, TOKENS, (7, 1, 12)), full)
        alone = caller(spec)(params, TOKENS[:1])[0]
        close(caller(spec)(params, TOKENS)[0][:1], alone)


@pytest.mark.parametrize(
    "name, args, match",
    [
        ("self_extend", {"inner": "alibi"}, "SelfExtend.inner: expected the encoding 'rotary', got 'alibi'"),
        ("self_extend", {"inner": "none"}, "expected the encoding 'rotary', got 'none'"),
        ("self_extend", {"window": 0}, "SelfExtend.window"),
        ("self_extend", {"group": -1}, "SelfExtend.group"),
        ("lm_infinite", {"inner": "t5_bias"}, "expected the encoding 'rotary' or 'alibi', got 't5_bias'"),
        ("lm_infinite", {"limit": 0}, "LmInfinite.limit"),
        (
            "streaming",
            {"inner": {"name": "randomized", "args": {}}},
            "expected the encoding 'rotary', got 'randomized'",
        ),
        ("streaming", {"sinks": -1}, "Streaming.sinks"),
        ("streaming", {"window": 0}, "Streaming.window"),
    ],
)
def test_what_is_refused(name, args, match):
    with pytest.raises(ConfigError, match=match) as caught:
        make("position", {"name": name, "args": args})
    assert "\n" not in str(caught.value)


def test_a_bfloat16_model_turns_in_float32():
    """Fractional positions keep their fraction: angles are float32 whatever the model's dtype."""
    position = SelfExtend(ROTARY, window=5, group=3)
    x = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    at = jnp.int32([[400]])
    far = position.views({}, x, x, at, at, None)[1][0]
    assert far.dtype == jnp.bfloat16
    exact = ROTARY.rotate({}, x.astype(jnp.float32), jnp.float32([[133 + 5 - 5 / 3]]), None)
    np.testing.assert_array_equal(np.asarray(far, np.float32), np.asarray(exact.astype(jnp.bfloat16), np.float32))
