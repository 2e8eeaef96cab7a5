"""`jaxlm.extend`: what it is made of and what it refuses; tests/interop has every way on an imported model."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.attention.mask import Window
from jaxlm.core.errors import ConfigError
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.mixer.parallel import Parallel
from jaxlm.model.extend import METHODS
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling.yarn import Yarn
from tests.tiny import close, params_of, tiny, tokens_of

ORIGINAL = 8
ROTARY = {"position": {"name": "rotary", "args": {"base": 50.0}}}


def model_of(**mixer) -> jaxlm.LanguageModel:
    return jaxlm.LanguageModel(tiny({**ROTARY, **mixer}))


def logits(model: jaxlm.LanguageModel, params, tokens) -> np.ndarray:
    return np.asarray(jax.jit(lambda p: model.apply({"params": p}, tokens).logits)(params))


@pytest.fixture(scope="module")
def trained():
    model = model_of()
    return model, params_of(model.spec), tokens_of(2, 4 * ORIGINAL)


def test_a_way_is_what_its_parts_are(trained):
    model, params, tokens = trained
    ours = jaxlm.extend(model, "window", factor=4, original=ORIGINAL)
    close(logits(ours, params, tokens), logits(jaxlm.replace(model, {"mixer.mask": Window(ORIGINAL)}), params, tokens))


def test_arms_of_a_parallel_mixer():
    """A rotary encoding is found wherever it stands in a mixer of mixers, and what has none stays as it is."""
    rotary, alibi = Attention(heads=4, **ROTARY), Attention(heads=2, position="alibi")
    inner = Parallel(first=alibi, second=rotary)

    def extended(mixer, method: str):
        model = jaxlm.LanguageModel(ModelSpec(layers=(Group((Block(mixer=mixer),)),)))
        return jaxlm.extend(model, method, factor=4, original=ORIGINAL).spec.layers[0].pattern[0].mixer

    for method in ("yarn", "streaming"):  # another position, and another mask too
        ours = extended(Parallel(first=Mamba2(), second=inner), method)
        assert ours.second.second == extended(rotary, method) != rotary
        assert (ours.first, ours.second.first) == (Mamba2(), alibi)
    with pytest.raises(ConfigError, match="no layer of the model has them"):
        extended(Parallel(first=Mamba2(), second=alibi), "yarn")


def test_a_model_that_is_scaled_already(trained):
    """Ways that go around the rotary encoding keep its scaling; those that are a scaling refuse."""
    scaled = model_of(position=Rotary(base=50.0, scaling=Yarn(2.0, ORIGINAL)))
    for name, way in METHODS.items():
        if way.around:
            jaxlm.extend(scaled, name, factor=2, original=2 * ORIGINAL)
            continue
        with pytest.raises(ConfigError, match=r"scaling Yarn already; allowed then: none, .*self_extend") as caught:
            jaxlm.extend(scaled, name, factor=2, original=2 * ORIGINAL)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"method": "self_extent"}, "did you mean 'self_extend'"),
        ({"factor": 0.5}, "factor 0.5 is below 1"),
        ({"original": 0}, "original 0, the length of training"),
    ],
)
def test_what_is_refused(trained, arguments, words):
    given = {"method": "ntk", "factor": 2.0, "original": ORIGINAL, **arguments}
    with pytest.raises(ConfigError, match=words) as caught:
        jaxlm.extend(trained[0], given.pop("method"), **given)
    assert "\n" not in str(caught.value)


def test_a_model_without_rotary_positions_is_refused():
    model = jaxlm.LanguageModel(tiny({"position": "alibi"}))
    with pytest.raises(ConfigError, match="no layer of the model has them"):
        jaxlm.extend(model, "self_extend", factor=2, original=ORIGINAL)
