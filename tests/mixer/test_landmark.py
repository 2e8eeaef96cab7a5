"""The landmark mixer with its memory: retrieval of every block is the full pass; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.mixer.landmark import LandmarkAttention
from jaxlm.model import decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from tests.tiny import VOCABULARY, caller, close, layers_of, params_of, stream, tiny, tokens_of

LENGTH = 14
SEGMENTS = np.asarray([[1] * 14, [0] * 3 + [1] * 11, [1] * 4 + [0] * 2 + [1] * 8, [1] * 5 + [2] * 8 + [0]], np.int32)
TOKENS = tokens_of(*SEGMENTS.shape)
REAL = SEGMENTS != 0


def spec_of(position="rotary", **more) -> ModelSpec:
    mixer = LandmarkAttention(heads=4, kv_heads=2, period=3, position=position, **more)
    return ModelSpec(vocab_size=VOCABULARY, width=16, layers=(Group((Block(mixer=mixer, ffn=None),)),))


def memory(blocks: int, positions: str = "stingy") -> dict:
    return {"name": "landmark", "args": {"blocks": blocks, "positions": positions}}


@pytest.mark.parametrize("more", [{}, {"qk_norm": "rms", "qk_norm_rotated": True, "soft_cap": 2.0, "scale": 0.6}])
def test_reading_every_block_is_the_full_pass(more) -> None:
    spec = spec_of(**more)
    params, call = layers_of(spec), caller(spec)
    full = np.asarray(call(params, TOKENS, SEGMENTS)[0])
    for positions in ("stingy", "original"):
        for pieces in [(5, 1, 8), (LENGTH,)]:
            out = stream(spec, call, params, TOKENS, pieces, SEGMENTS, cache=memory(9, positions))
            close(out[REAL], full[REAL])


def test_reading_few_blocks_is_the_same_in_pieces_and_steps() -> None:
    spec = spec_of()
    params, call = layers_of(spec), caller(spec)
    whole = stream(spec, call, params, TOKENS, (LENGTH,), SEGMENTS, cache=memory(1))
    for pieces in [(5, 1, 8), (1,) * LENGTH]:
        close(stream(spec, call, params, TOKENS, pieces, SEGMENTS, cache=memory(1))[REAL], whole[REAL])
    full = np.asarray(call(params, TOKENS, SEGMENTS)[0])
    assert np.abs(whole - full)[REAL].max() > 1e-2
    close(whole[0, :6], full[0, :6])  # as long as there is one earlier block


def test_generation_reads_the_memory_and_grows_it() -> None:
    spec = spec_of()
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    lengths = np.asarray([14, 3, 9, 6])
    full = jaxlm.generate(model, params, TOKENS, 6, prompt_lengths=lengths)
    growing = {"name": "landmark", "args": {"blocks": 9, "chunk": 4}}
    np.testing.assert_array_equal(full, jaxlm.generate(model, params, TOKENS, 6, prompt_lengths=lengths, cache=growing))


def test_a_memory_on_the_host_is_the_same_memory() -> None:
    """A CPU has but one memory, and says so; what is written and read there goes by rows of a table all the same."""
    spec = spec_of()
    params, call = layers_of(spec), caller(spec)
    apart = {"name": "landmark", "args": {"blocks": 1, "offload": True}}
    with pytest.warns(UserWarning, match="offload does nothing on a CPU"):
        out = stream(spec, call, params, TOKENS, (5, 1, 8), SEGMENTS, cache=apart)
    close(out[REAL], stream(spec, call, params, TOKENS, (5, 1, 8), SEGMENTS, cache=memory(1))[REAL])


def test_what_it_refuses() -> None:
    for position in ("alibi", "t5_bias"):
        spec = spec_of(position)
        with pytest.raises(ConfigError, match=f"'{position}' adds a bias"):
            decoder.forward(spec, params_of(spec), TOKENS)
    with pytest.raises(ConfigError, match="serves the mixer 'landmark'"):
        jaxlm.init_state(jaxlm.LanguageModel(tiny()), 1, 8, "landmark")
    for args, words in [({"blocks": -1}, "blocks"), ({"chunk": -1}, "chunk"), ({"positions": "near"}, "positions")]:
        with pytest.raises(ConfigError, match=words):
            jaxlm.init_state(jaxlm.LanguageModel(spec_of()), 1, 8, {"name": "landmark", "args": args})
    with pytest.raises(ConfigError, match="period: expected 2"):
        LandmarkAttention(period=1)
    with pytest.raises(ConfigError, match="offload needs blocks > 0"):
        jaxlm.init_state(
            jaxlm.LanguageModel(spec_of()), 1, 8, {"name": "landmark", "args": {"blocks": 0, "offload": True}}
        )
    scaling = {"name": "dynamic", "args": {"factor": 2.0, "original": 4}}
    spec = spec_of({"name": "rotary", "args": {"scaling": scaling}})
    state = jaxlm.init_state(jaxlm.LanguageModel(spec), 4, LENGTH, memory(1))
    with pytest.raises(ConfigError, match="length="):
        decoder.forward(spec, params_of(spec), TOKENS, state=state)
