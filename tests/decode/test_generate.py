"""Generation against the slow, obvious way: the full pass over everything so far, once per token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from tests.tiny import params_of

VOCAB, NEW = 23, 6
PROMPT = np.random.default_rng(0).integers(0, VOCAB, (3, 7))
LENGTHS = np.array([7, 2, 5])


def build(position="rotary", scale=4.0, repeats=1, **fields):
    """A model whose logits are far enough apart that no argmax is a near tie."""
    block = jaxlm.Block(mixer=jaxlm.Attention(heads=2, kv_heads=1, position=position))
    spec = jaxlm.ModelSpec(vocab_size=VOCAB, width=16, layers=(jaxlm.Group((block,), repeats),), **fields)
    model = jaxlm.LanguageModel(spec)
    return model, jax.tree.map(lambda p: p * scale if p.ndim > 1 else p, params_of(spec))


def naive(model, params, prompt, lengths, new, positions=None):
    """Greedy tokens [B, new] by full passes without any state."""
    apply = jax.jit(lambda tokens: model.apply({"params": params}, tokens, positions=positions).logits)
    rows = np.arange(len(prompt))
    tokens = np.pad(prompt, ((0, 0), (0, new))).astype(np.int32)
    for step in range(new):
        tokens[rows, lengths + step] = np.argmax(apply(tokens)[rows, lengths + step - 1], axis=-1)
    return np.stack([row[n : n + new] for row, n in zip(tokens, lengths, strict=True)])


@pytest.mark.parametrize("position", jaxlm.list("position"))
def test_equals_full_passes(position):
    model, params = build(position, repeats=2 if position == "rotary" else 1)
    key, size = jax.random.key(5), PROMPT.shape[1] + NEW
    got = np.asarray(jaxlm.generate(model, params, PROMPT, NEW, key=key, prompt_lengths=LENGTHS))
    assert got.shape == (3, NEW) and got.dtype == np.int32
    # Random positions are drawn once, for each row's own full length; its last new token is never read.
    plain = jnp.minimum(jnp.arange(size), LENGTHS[:, None] + NEW - 2)
    drawn = jaxlm.draw_positions(model, jax.random.split(key)[1], plain)
    if drawn is not None:  # padding of the full pass lies ahead of all tokens
        drawn = jnp.where(jnp.arange(size) > LENGTHS[:, None] + NEW - 2, 2047, drawn)
    np.testing.assert_array_equal(got, naive(model, params, PROMPT, LENGTHS, NEW, drawn))


@pytest.mark.parametrize("position, temperature", [("rotary", 0.7), ("randomized", 0.7), ("learned", 0.0)])
def test_a_row_does_not_depend_on_the_batch(position, temperature):
    """Others' lengths, contents and number change nothing; noise belongs to (key, row, step)."""
    model, params = build(position, scale=2.0)
    key = jax.random.key(3)
    together = np.asarray(jaxlm.generate(model, params, PROMPT, NEW, temperature, key, LENGTHS))
    others, lengths = (PROMPT + 1) % VOCAB, np.array([3, 2, 7])
    others[1] = PROMPT[1]
    among = jaxlm.generate(model, params, others, NEW, temperature, key, lengths)
    np.testing.assert_array_equal(together[1], among[1])
    alone = jaxlm.generate(model, params, np.tile(PROMPT[1, :2], (2, 1)), NEW, temperature, key)
    np.testing.assert_array_equal(together[1], alone[1])
    if temperature:
        other = jaxlm.generate(model, params, PROMPT, NEW, temperature, jax.random.key(4), LENGTHS)
        assert (np.asarray(other) != together).any()


def test_more_tokens_continue_fewer():
    model, params = build(scale=2.0)
    few, many = (jaxlm.generate(model, params, PROMPT, n, 1.0, jax.random.key(0)) for n in (1, NEW))
    np.testing.assert_array_equal(few[:, 0], many[:, 0])


def test_stop_repeats_and_leaves_other_rows_alone():
    model, params = build()
    free = np.asarray(jaxlm.generate(model, params, PROMPT, NEW))
    token = int(free[0, 2])
    got = np.asarray(jaxlm.generate(model, params, PROMPT, NEW, stop=(token, VOCAB - 1)))
    for row, expected in zip(got, free, strict=True):
        ends = np.flatnonzero(np.isin(expected, (token, VOCAB - 1)))
        first = ends[0] if ends.size else NEW
        np.testing.assert_array_equal(row[: first + 1], expected[: first + 1])
        assert (row[first:] == row[min(first, NEW - 1)]).all()
    assert (got[0, 2:] == token).all()


def test_all_rows_stopped_at_once_fill_the_rest():
    model, params = build()
    free = np.asarray(jaxlm.generate(model, params, PROMPT, 1))
    got = np.asarray(jaxlm.generate(model, params, PROMPT, NEW, stop=tuple(int(t) for t in free[:, 0])))
    np.testing.assert_array_equal(got, np.repeat(free, NEW, axis=1))


def test_samples_follow_the_softmax():
    model, params = build(scale=1.0)
    rows = 4000
    got = np.asarray(jaxlm.generate(model, params, np.tile(PROMPT[:1], (rows, 1)), 1, 0.8, jax.random.key(0)))[:, 0]
    logits = model.apply({"params": params}, jnp.asarray(PROMPT[:1])).logits[0, -1]
    expected = np.asarray(jax.nn.softmax(logits / 0.8))
    counts = np.bincount(got, minlength=VOCAB)
    chi2 = np.sum((counts - rows * expected) ** 2 / (rows * expected))
    assert chi2 < 48.3  # the 0.1 % point of chi-square with 22 degrees of freedom


def test_narrow_sampling_is_greedy():
    model, params = build(scale=1.0)
    greedy = jaxlm.generate(model, params, PROMPT, NEW)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        got = jaxlm.generate(model, params, PROMPT, NEW, 1.0, jax.random.key(0), **narrow)
        np.testing.assert_array_equal(got, greedy)


def test_padding_beyond_the_table_is_no_obstacle():
    model, params = build({"name": "learned", "args": {"size": 12}})
    padded = np.pad(PROMPT, ((0, 0), (0, 8)))
    got = jaxlm.generate(model, params, padded, NEW, prompt_lengths=LENGTHS)
    np.testing.assert_array_equal(got, jaxlm.generate(model, params, PROMPT, NEW, prompt_lengths=LENGTHS))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt_BL": PROMPT[0]}, "expected integers of shape"),
        ({"prompt_BL": PROMPT[:, :0]}, "prompt is empty"),
        ({"prompt_BL": PROMPT * 1.0}, "expected integers"),
        ({"prompt_BL": PROMPT + VOCAB}, "outside the vocabulary of 23"),
        ({"prompt_lengths": [7, 0, 5]}, "outside 1..7"),
        ({"prompt_lengths": [7, 8, 5]}, "outside 1..7"),
        ({"prompt_lengths": [7, 7]}, "expected 3 integers"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 8}, "need 14 positions; the model's position encoding can represent 13"),
        ({"temperature": -1.0, "key": jax.random.key(0)}, "temperature"),
        ({"temperature": 1.0}, "needs key="),
        ({"top_k": 24}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": (23,)}, "stop"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    model, params = build({"name": "learned", "args": {"size": 13}})
    with pytest.raises(ConfigError, match=message) as error:
        jaxlm.generate(model, params, **{"prompt_BL": PROMPT, "max_new_tokens": 4, **arguments})
    assert "\n" not in str(error.value)
