"""Laws of sequence edits: a model that edits its own input is the model on the edited input, however it is called."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm import edit
from jaxlm.core.config import make
from jaxlm.core.errors import ConfigError
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.landmark import LandmarkAttention
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.next_token import NextToken
from tests.tiny import VOCABULARY, caller, close, layers_of, params_of, stream, tokens_of

PERIOD, MARK = 4, VOCABULARY - 1
CASES = {"landmark": {"period": PERIOD, "token": -1}}
every = pytest.mark.parametrize("name", CASES)

MIXERS = {
    "landmark": LandmarkAttention(heads=4, kv_heads=2, period=PERIOD),
    "attention": Attention(heads=4, kv_heads=2),  # whose cache holds the padding between tokens, too
}

LENGTH = 12
SEGMENTS = np.asarray([[1] * 12, [0] * 3 + [1] * 9, [1] * 4 + [0] * 2 + [1] * 6, [1] * 4 + [2] * 7 + [0]], np.int32)
REAL = SEGMENTS != 0
TOKENS = tokens_of(*SEGMENTS.shape) % MARK  # a text never holds a landmark


def spec_of(name: str | None, mixer: str = "landmark") -> ModelSpec:
    method = None if name is None else make("sequence_edit", {"name": name, "args": CASES[name]})
    block = Block(mixer=MIXERS[mixer], ffn=None)
    return ModelSpec(vocab_size=VOCABULARY, width=16, layers=(Group((block,)),), edit=method)


def test_the_list_has_every_registered_edit() -> None:
    assert set(CASES) == set(edit.METHODS)


@every
def test_survives_json(name: str) -> None:
    spec = spec_of(name)
    assert ModelSpec.from_json(spec.to_json()) == spec


@every
@pytest.mark.parametrize("mixer", MIXERS)
def test_full_pass_is_pieces_is_single_steps(name: str, mixer: str) -> None:
    spec = spec_of(name, mixer)
    params, call = layers_of(spec), caller(spec)
    for segments, real in [(SEGMENTS, REAL), (None, np.ones_like(REAL))]:
        full = np.asarray(call(params, TOKENS, segments)[0])
        for pieces in [(5, 1, 1, 5), (1,) * LENGTH, (LENGTH,)]:
            close(stream(spec, call, params, TOKENS, pieces, segments)[real], full[real])


@every
def test_plain_positions_given_are_plain_positions(name: str) -> None:
    spec = spec_of(name)
    params, call = layers_of(spec), caller(spec)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)
    full = call(params, TOKENS)[0]
    close(call(params, TOKENS, None, positions)[0], full)
    close(stream(spec, call, params, TOKENS, (5, 1, 6), None, positions), full)


@every
def test_lengths(name: str) -> None:
    method = spec_of(name).edit
    for text in range(1, 30):
        tokens = jax.ShapeDtypeStruct((1, text), jnp.int32)
        edited = jax.eval_shape(lambda tokens: method.insert(tokens, None, None, None, VOCABULARY), tokens)
        assert edited.tokens.shape[1] == method.length(text) <= method.slots(text)
        assert method.length(method.text(text)) <= text < method.length(method.text(text) + 1)


def test_landmarks_end_every_block() -> None:
    """The model on rows with landmarks written by hand, document by document."""
    spec = spec_of("landmark")
    rows, kept = [], []
    for tokens, ids in zip(TOKENS, SEGMENTS, strict=True):
        row, where, seen = [], [], 0
        for token, segment in zip(tokens, ids, strict=True):
            where.append(len(row))
            row.append((token, segment))
            seen += segment != 0
            if segment and seen % (PERIOD - 1) == 0:
                row.append((MARK, segment))
        rows.append(row + [(0, 0)] * (16 - len(row)))
        kept.append(where)
    tokens, ids = (np.asarray(rows, np.int32)[..., i] for i in (0, 1))
    params = params_of(spec)
    plain = np.asarray(caller(spec_of(None))(params, tokens, ids)[0])
    plain = np.take_along_axis(plain, np.asarray(kept)[..., None], 1)
    close(np.asarray(caller(spec)(params, TOKENS, SEGMENTS)[0])[REAL], plain[REAL])


@every
def test_trains_and_generates_without_knowing(name: str) -> None:
    """The loss sees the text's own targets; a row's new text does not depend on its batch, and holds no mark."""
    spec = spec_of(name)
    params = params_of(spec)
    batch = {"tokens": TOKENS, "targets": np.roll(TOKENS, -1, 1), "weights": REAL.astype(np.float32)}
    batch |= {"segment_ids": SEGMENTS}
    loss = lambda params: NextToken().loss(Decoder(spec), params, batch, None)[0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    logits = np.asarray(jax.nn.log_softmax(caller(spec)(params, TOKENS, SEGMENTS)[0]))
    close(value, -np.take_along_axis(logits, batch["targets"][..., None], -1)[REAL].sum())
    assert np.abs(gradient["embed"]["table"][MARK]).max() > 1e-3
    model, lengths = jaxlm.LanguageModel(spec), np.asarray([12, 2, 7, 5])  # of prompts
    likely = {**params, "head": {"kernel": params["head"]["kernel"].at[:, MARK].mul(9.0)}}
    new = np.asarray(jaxlm.generate(model, likely, TOKENS, 6, prompt_lengths=lengths))
    for i in (1, 2):
        alone = jaxlm.generate(model, likely, TOKENS[i : i + 1, : lengths[i]], 6)
        np.testing.assert_array_equal(new[i : i + 1], alone)
    assert (new != MARK).all()


def test_a_table_of_positions_has_room_for_less_text() -> None:
    spec = spec_of("landmark", "attention")
    mixer = dataclasses.replace(MIXERS["attention"], position={"name": "learned", "args": {"size": 16}})
    spec = dataclasses.replace(spec, layers=(Group((Block(mixer=mixer, ffn=None),)),))
    assert decoder.max_positions(spec) == 12
    params, tokens = params_of(spec), np.zeros((1, 13), np.int32)
    assert np.isfinite(decoder.forward(spec, params, tokens[:, :12]).logits).all()
    with pytest.raises(ConfigError, match="length 13 is beyond the 12"):
        decoder.forward(spec, params, tokens)


def test_bad_settings_are_one_clear_line() -> None:
    bad = [
        ({"period": 1}, "period: expected 2"),
        ({"period": 4, "token": VOCABULARY}, "outside the vocabulary of 13"),
        ({"period": 5}, "mixer's landmarks have period 4, but the model inserts 5"),
    ]
    for args, words in bad:
        with pytest.raises(ConfigError, match=words) as caught:
            dataclasses.replace(spec_of(None), edit={"name": "landmark", "args": args})
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="takes tokens"):
        spec = spec_of("landmark")
        decoder.forward(spec, params_of(spec), inputs_embeds=jnp.zeros((1, 4, 16)))
