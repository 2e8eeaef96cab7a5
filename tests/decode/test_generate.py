"""Generation against the slow, obvious way: the full pass over everything so far, once per token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.decode import loop
from jaxlm.decode.processor import Processor
from tests.tiny import mostly_slow, params_of

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


QUICK = "none", "learned", "rotary", "alibi", "t5_bias", "randomized", "forgetting", "streaming"


@pytest.mark.parametrize("position", mostly_slow(jaxlm.list("position"), *QUICK))
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


def test_padding_on_the_left_is_padding_on_the_right():
    model, params = build("learned", scale=2.0)
    left = np.stack([np.roll(row, len(row) - n) for row, n in zip(PROMPT, LENGTHS, strict=True)])
    options = {"key": jax.random.key(0), "prompt_lengths": LENGTHS, "repetition_penalty": 1.5}
    got = jaxlm.generate(model, params, left, NEW, 0.7, padding="left", **options)
    np.testing.assert_array_equal(got, jaxlm.generate(model, params, PROMPT, NEW, 0.7, **options))


@pytest.mark.parametrize("position", ["rotary", "randomized"])
def test_a_text_goes_with_its_row_id(position):
    """Rows in another order, among others, with limits of their own: each draws what its id says."""
    model, params = build(position, scale=2.0)
    key = jax.random.key(3)
    together = np.asarray(jaxlm.generate(model, params, PROMPT, NEW, 0.7, key, LENGTHS))
    order = np.array([2, 0, 1])
    moved = jaxlm.generate(model, params, PROMPT[order], NEW, 0.7, key, LENGTHS[order], rows=order)
    np.testing.assert_array_equal(moved, together[order])
    alone = jaxlm.generate(model, params, PROMPT[2:, :5], NEW, 0.7, key, rows=[2])
    np.testing.assert_array_equal(alone, together[2:])


def test_limits_of_rows():
    model, params = build({"name": "learned", "args": {"size": 12}})
    limits = np.array([2, 6, 4])
    free = np.stack([jaxlm.generate(model, params, PROMPT[i : i + 1, :n], 6)[0] for i, n in enumerate(LENGTHS)])
    got = np.asarray(jaxlm.generate(model, params, PROMPT, limits, prompt_lengths=LENGTHS))
    expected = [[*row[:n], *[row[n - 1]] * (6 - n)] for row, n in zip(free, limits, strict=True)]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("every", [1, 4, 100])
def test_a_stream_is_the_text_in_pieces(every):
    model, params = build(scale=2.0)
    arguments = (model, params, PROMPT, NEW, 0.7, jax.random.key(1), LENGTHS)
    free = np.asarray(jaxlm.generate(*arguments))
    stop = (int(free[0, 1]),)
    calls = []
    got = np.asarray(jaxlm.generate(*arguments, stop=stop, stream=calls.append, stream_every=every))
    np.testing.assert_array_equal(got, jaxlm.generate(*arguments, stop=stop))
    texts = []
    for row, text in zip(zip(*calls, strict=True), free, strict=True):
        ends = np.flatnonzero(np.isin(text, stop))
        texts.append(text[: ends[0] + 1 if ends.size else NEW])
        np.testing.assert_array_equal(np.concatenate(row), texts[-1])
    longest = max(map(len, texts))
    assert [max(map(len, call)) for call in calls][:2] == [1, min(every, longest - 1)]


def test_a_stream_may_end_rows_and_fail():
    model, params = build(scale=2.0)
    free = np.asarray(jaxlm.generate(model, params, PROMPT, NEW))
    calls = []

    def second_row_ends(new):
        calls.append(new)
        return np.array([False, len(calls) == 3, False])

    got = np.asarray(jaxlm.generate(model, params, PROMPT, NEW, stream=second_row_ends))
    np.testing.assert_array_equal(got[[0, 2]], free[[0, 2]])
    np.testing.assert_array_equal(got[1], [*free[1, :3], *[free[1, 2]] * (NEW - 3)])
    assert [len(new[1]) for new in calls] == [1, 1, 1, 0, 0, 0]
    got = np.asarray(jaxlm.generate(model, params, PROMPT, NEW, stream=lambda new: True))
    np.testing.assert_array_equal(got, np.repeat(free[:, :1], NEW, 1))

    def fails(new):
        raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"):
        jaxlm.generate(model, params, PROMPT, NEW, stream=fails)
    with pytest.raises(ConfigError, match="stream: expected the callback to return"):
        jaxlm.generate(model, params, PROMPT, NEW, stream=lambda new: "stop")


def test_other_numbers_compile_nothing():
    model, params = build(scale=2.0)

    def call(temperature, top_p, min_p, penalty, seed):
        options = {"top_p": top_p, "min_p": min_p, "repetition_penalty": penalty, "stop": (seed,)}
        jaxlm.generate(model, params, PROMPT, NEW, temperature, jax.random.key(seed), top_k=7, **options)

    call(0.5, 0.9, 0.01, 1.1, 0)
    before = loop.start._cache_size(), loop.proceed._cache_size()
    call(1, 0.5, 0.02, 2, 1)
    call(np.float32(0.7), 0.6, np.float64(0.1), 0.9, 2)
    assert (loop.start._cache_size(), loop.proceed._cache_size()) == before


@dataclasses.dataclass(frozen=True)
class Alternate(Processor):
    """A toy grammar: even and odd tokens in turns, its state the parity that comes next."""

    def init(self, prompt_BL, real_BL, vocab_size):
        return jnp.zeros(prompt_BL.shape[0], jnp.int32)

    def __call__(self, logits_BV, token_B, step, state):
        state = state if token_B is None else (token_B + 1) % 2
        return jnp.where(jnp.arange(VOCAB) % 2 == state[:, None], logits_BV, -jnp.inf), state


def test_processors_of_the_caller():
    model, params = build(scale=2.0)
    for temperature in (0.0, 1.0):
        got = jaxlm.generate(
            model, params, PROMPT, NEW, temperature, jax.random.key(0),
            processors=[Alternate(), {"name": "suppress", "args": {"tokens": (0, 1)}}],
        )  # fmt: skip
        assert (np.asarray(got) % 2 == np.arange(NEW) % 2).all() and (np.asarray(got) > 1).all()


def test_a_penalty_of_repetition_is_over_prompt_and_text():
    """A huge penalty leaves nothing but new tokens; padding, which is token 0 inside, is not among the old ones."""
    model, params = build(scale=1.0)
    lengths = np.array([7, 2, 5])
    got = np.asarray(jaxlm.generate(model, params, PROMPT, NEW, prompt_lengths=lengths, repetition_penalty=1e9))
    for row, (text, n) in enumerate(zip(got, lengths, strict=True)):
        assert len({*text, *PROMPT[row, :n]}) == NEW + len({*PROMPT[row, :n]})
    alone = jaxlm.generate(model, params, PROMPT[1:2, :2], NEW, repetition_penalty=1e9)
    np.testing.assert_array_equal(alone[0], got[1])


@pytest.mark.parametrize("arguments", [{"rotated": False}, {"chunk": 2}, {"chunk": 1000}])
def test_another_cache(arguments):
    model, params = build()
    cache, calls = {"name": "full", "args": arguments}, []
    free = jaxlm.generate(model, params, PROMPT, NEW, prompt_lengths=LENGTHS)
    got = jaxlm.generate(model, params, PROMPT, NEW, prompt_lengths=LENGTHS, cache=cache)
    np.testing.assert_array_equal(got, free)
    got = jaxlm.generate(model, params, PROMPT, NEW, prompt_lengths=LENGTHS, cache=cache, stream=calls.append)
    np.testing.assert_array_equal(got, free)
    assert [len(new[0]) for new in calls] == [1] * NEW


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
        ({"stop": 3}, "stop: expected a sequence"),
        ({"max_new_tokens": [1, 2]}, "max_new_tokens: expected 3 integers"),
        ({"max_new_tokens": 2.0}, "max_new_tokens: expected 3 integers"),
        ({"min_p": 1.5, "temperature": 1.0, "key": jax.random.key(0)}, "min_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_p": "0.9"}, "top_p: expected a number, got '0.9'"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"padding": "top"}, "unknown padding 'top'"),
        ({"rows": [0, -1, 2]}, "rows"),
        ({"cache": "fool"}, "cache: unknown cache 'fool'"),
        ({"cache": {"name": "full", "args": {"chunk": -1}}}, "cache: Full.chunk: expected a number"),
        ({"stream_every": 0}, "stream_every"),
        ({"processors": ["nope"]}, "unknown processor"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    model, params = build({"name": "learned", "args": {"size": 13}})
    with pytest.raises(ConfigError, match=message) as error:
        jaxlm.generate(model, params, **{"prompt_BL": PROMPT, "max_new_tokens": 4, **arguments})
    assert "\n" not in str(error.value)
