"""Abacus: places within numbers, against recorded ones and a count by hand; offsets of training; who may use it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.model import decoder
from jaxlm.position.abacus import Abacus, runs
from tests.tiny import VOCABULARY, params_of, tiny, tokens_of

DIGITS = (2, 3, 5, 7)
EMPTY = Abacus().start(6)


def counted(tokens: np.ndarray, segments: np.ndarray, digits) -> np.ndarray:
    """By hand: over each document's real tokens in turn."""
    out = np.zeros_like(tokens)
    for row in range(len(tokens)):
        run, document = 0, 0
        for slot in range(tokens.shape[1]):
            if not segments[row, slot]:
                continue
            run = (run if segments[row, slot] == document else 0) + 1 if tokens[row, slot] in digits else 0
            document = segments[row, slot]
            out[row, slot] = run
    return out


def test_golden(golden):
    (path,) = (golden / "positions").glob("abacus_positions*.npz")
    data = np.load(path)
    ids, digits = data["input_ids"], tuple(data["digit_token_ids"].tolist())
    assert len(ids) == 6
    found = runs(jnp.asarray(ids), jnp.ones_like(ids), digits, EMPTY)
    np.testing.assert_array_equal(found, data["positions"])


def ragged(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows mostly of digits, documents and padding in runs of random lengths."""
    draw = np.random.default_rng(seed)
    tokens = draw.choice([2, 3, 5, 7, 9], (40, 20), p=[0.22] * 4 + [0.12]).astype(np.int32)
    segments = np.zeros_like(tokens)
    for row in segments:
        slot, document = 0, 0
        while slot < len(row):
            size = int(draw.integers(1, 8))
            padding = draw.random() < 0.3
            document += not padding and draw.random() < 0.6
            row[slot : slot + size] = 0 if padding else max(document, 1)
            slot += size
    return tokens, segments


def test_runs_go_on_across_padding_and_end_with_their_document():
    tokens, segments = ragged()
    found = runs(jnp.asarray(tokens), jnp.asarray(segments), DIGITS, Abacus().start(40))
    np.testing.assert_array_equal(found, counted(tokens, segments, DIGITS))


def encoding_of(spec):
    return spec.layers[0].pattern[0].mixer.position


def spec_of(**args):
    abacus = Abacus(**{"digit_ids": DIGITS, "size": 40, "max_offset": 9, **args})
    return tiny({"position": abacus}, {"ffn": None}, repeats=1)


def looked_up(encoding: Abacus, tokens, train: bool, key=None) -> np.ndarray:
    """The rows that were read, from a table whose rows say their number."""
    table = {"digits": jnp.broadcast_to(jnp.arange(encoding.size, dtype=jnp.float32)[:, None], (encoding.size, 4))}
    return np.asarray(encoding.embed_tokens(table, jnp.asarray(tokens), None, None, 4, train, key)[0])[..., 0]


def test_offsets_of_training():
    """One a row, uniform on 0..max_offset, on digits alone; none outside training."""
    encoding, tokens = encoding_of(spec_of()), np.tile([2, 3, 9, 5, 5, 5], (4000, 1)).astype(np.int32)
    plain = looked_up(encoding, tokens, False)
    np.testing.assert_array_equal(plain[0], [1, 2, 0, 1, 2, 3])
    drawn = looked_up(encoding, tokens, True, jax.random.key(0))
    offsets = drawn[:, :1] - 1
    np.testing.assert_array_equal(drawn, np.where(plain > 0, plain + offsets, 0))
    counts = np.bincount(offsets[:, 0].astype(int), minlength=10)
    assert len(counts) == 10 and counts.min() > 320 and counts.max() < 480  # 400 each, standard deviation 19
    np.testing.assert_array_equal(drawn, looked_up(encoding, tokens, True, jax.random.key(0)))
    assert (drawn != looked_up(encoding, tokens, True, jax.random.key(1))).any()


def test_beyond_the_table_is_nan():
    read = looked_up(Abacus(digit_ids=DIGITS, size=4, max_offset=0), [[2, 2, 2, 2, 2, 9]], False)[0]
    np.testing.assert_array_equal(read, [1, 2, 3, np.nan, np.nan, 0])


def test_training_reaches_the_model():
    spec = spec_of()
    params, tokens = params_of(spec), tokens_of(4, 9)
    forward = jax.jit(lambda key: decoder.forward(spec, params, tokens, train=True, rng=key).logits)
    assert np.abs(forward(jax.random.key(0)) - forward(jax.random.key(1))).max() > 1e-2
    with pytest.raises(ConfigError, match="'abacus' draws offsets in training"):
        decoder.forward(spec, params, tokens, train=True)


def test_it_reads_tokens_and_nothing_else():
    spec = spec_of()
    with pytest.raises(ConfigError, match="'abacus' reads the tokens, and takes neither inputs_embeds nor an edit"):
        decoder.forward(spec, params_of(spec), inputs_embeds=jnp.zeros((1, 3, 16)))
    edit = {"name": "landmark", "args": {}}
    edited = tiny({"position": Abacus()}, {"ffn": None}, edit=edit, vocab_size=VOCABULARY + 1)
    with pytest.raises(ConfigError, match="nor an edit"):
        decoder.forward(edited, params_of(edited), tokens_of(1, 4))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"digit_ids": ()}, "digit_ids: expected at least one"),
        ({"size": 50, "max_offset": 49}, r"max_offset: allowed 0\.\.48"),
        ({"inner": "abacus"}, "inner: expected an encoding that does not read tokens"),
    ],
)
def test_bad_settings(args, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Abacus(**args)
    assert "\n" not in str(caught.value)


def test_position_ids_are_looked_up_in_place_of_positions():
    """Learned positions by given ids, in any order and repeated; the mask goes on by the order of the row."""
    spec = tiny({"position": {"name": "learned", "args": {"size": 20, "std": 0.5}}}, {"ffn": None}, repeats=1)
    params, tokens = params_of(spec), tokens_of(2, 6)
    ids = np.asarray([[5, 4, 3, 5, 4, 3], [0, 9, 2, 9, 2, 0]], np.int32)
    found = decoder.forward(spec, params, tokens, position_ids=ids).logits
    table = params["position"]["learned"]["table"]
    none = tiny({"position": "none"}, {"ffn": None}, repeats=1)
    embedded = params["embed"]["table"][tokens] + table[ids]
    expected = decoder.forward(none, params, inputs_embeds=embedded).logits
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ConfigError, match="position_ids: no position encoding of the model adds"):
        decoder.forward(none, params, tokens, position_ids=ids)
