"""PaTH attention against its formula in float64; memory; the convolution; what it refuses. The laws cover the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.mixer.path import Path
from jaxlm.model import decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.ops.causal_conv import causal_conv, empty_tail
from jaxlm.ops.path import Keys, Logits, Turns, path_attention
from tests.tiny import VOCABULARY, close, params_of, tokens_of

DRAWS = np.random.default_rng(0)


def draw(batch: int, length: int, heads: int, groups: int, width: int):
    """Queries, keys, values, turns whose factors reach both ends of (0, 2), and logarithms of gates."""
    normal = lambda *shape: DRAWS.standard_normal((batch, length, *shape))
    w = normal(groups, width)
    w /= np.linalg.norm(w, axis=-1, keepdims=True)
    beta = 2 / (1 + np.exp(-3 * normal(groups)))
    return normal(heads, width), normal(groups, width), normal(groups, 5), w, beta, -np.exp(normal(heads) - 2)


def formula(q, k, v, w, beta, log_f, segments) -> np.ndarray:
    """Pair by pair, product by product, float64."""
    batch, length, heads, width = q.shape
    out = np.zeros((batch, length, heads, v.shape[-1]))
    for b, h in np.ndindex(batch, heads):
        g = h // (heads // k.shape[2])
        for i in range(length):
            row, logits = q[b, i, h], {}
            for j in range(i, -1, -1):
                if segments[b, j] and segments[b, j] == segments[b, i]:
                    gates = sum(log_f[b, t, h] for t in range(j + 1, i + 1) if segments[b, t])
                    logits[j] = row @ k[b, j, g] / np.sqrt(width) + gates
                if segments[b, j]:
                    row = row - beta[b, j, g] * (row @ w[b, j, g]) * w[b, j, g]
            if logits:
                weights = np.exp(np.array([*logits.values()]))
                out[b, i, h] = weights / weights.sum() @ v[b, [*logits], g]
    return out


SEGMENTS = np.repeat([[1], [1], [0], [2], [0], [2], [3], [0]], 5, 0).T.repeat(2, 0)
SEGMENTS[1] = 1


@pytest.mark.parametrize(("block", "pieces"), [(8, (40,)), (64, (40,)), (7, (17, 1, 22)), (3, (1, 39))])
def test_it_is_the_formula(block, pieces):
    q, k, v, w, beta, log_f = drawn = draw(2, 40, 4, 2, 6)
    expected = formula(*drawn, SEGMENTS)
    sums, parts, past, start = np.cumsum(np.where(SEGMENTS[..., None], log_f, 0), 1), [], None, 0
    call = jax.jit(lambda q, new, turns, past: path_attention(q, new, turns, Logits(6**-0.5), past, block=block))
    for size in pieces:
        at = slice(start, start + size)
        cut = lambda x, at=at: jnp.asarray(x[:, at], jnp.float32)
        new = Keys(cut(k), cut(v), jnp.asarray(SEGMENTS[:, at], jnp.int32), cut(sums))
        out, own, old = call(cut(q), new, Turns(cut(w), cut(beta)), past)
        parts.append(np.asarray(out))
        new = new._replace(k=own)
        joined = jax.tree.map(lambda a, b: jnp.concatenate((a, b), 1), past._replace(k=old), new) if past else new
        past, start = joined, start + size
    found = np.concatenate(parts, 1)
    np.testing.assert_array_equal(found[SEGMENTS == 0], 0)
    close(found, expected, 5e-6)


def test_memory_grows_with_the_length_alone():
    """Not with its square, let alone that times the width; in the backward pass too."""

    def bytes_of(length: int) -> int:
        tails = [(2, 16)] * 4 + [(2,)]
        shapes = [jax.ShapeDtypeStruct((1, length, *tail), jnp.float32) for tail in tails]

        def loss(q, k, v, w, beta):
            new = Keys(k, v, jnp.ones((1, length), jnp.int32), None)
            return path_attention(q, new, Turns(w, beta), Logits(0.25), block=32)[0].sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, four = bytes_of(1024), bytes_of(4096)
    assert one > 0
    assert four < 5 * one, (one, four)


def test_short_convolution_against_a_count_by_hand():
    """Over the real tokens of each document, in whole rows and in pieces."""
    x, taps = DRAWS.standard_normal((2, 40, 3)).astype(np.float32), DRAWS.standard_normal((4, 3)).astype(np.float32)
    expected = np.zeros_like(x)
    for b in range(2):
        for document in set(SEGMENTS[b]) - {0}:
            slots = np.flatnonzero(SEGMENTS[b] == document)
            for n, slot in enumerate(slots):
                expected[b, slot] = sum(taps[t] * x[b, slots[n - t]] for t in range(min(4, n + 1)))
    real = SEGMENTS != 0
    segments = jnp.asarray(SEGMENTS, jnp.int32)
    close(np.asarray(causal_conv(x, taps, segments)[0])[real], expected[real])
    close(np.asarray(causal_conv(x[1:], taps)[0])[0], expected[1])
    for pieces in ((1,) * 40, (2, 17, 21)):
        tail, parts, start = empty_tail(2, 4, (3,), jnp.dtype(jnp.float32)), [], 0
        for size in pieces:
            y, tail = causal_conv(x[:, start : start + size], taps, segments[:, start : start + size], tail)
            parts.append(np.asarray(y))
            start += size
        close(np.concatenate(parts, 1)[real], expected[real])


def spec_of(**args) -> ModelSpec:
    layers = (Group((Block(mixer=Path(heads=4, **args), ffn=None),)),)
    return ModelSpec(vocab_size=VOCABULARY, width=16, layers=layers)


@pytest.mark.parametrize("position", ["rotary", "alibi", "t5_bias"])
def test_encodings_that_act_on_queries_and_keys_are_refused(position):
    spec = spec_of(position=position)
    with pytest.raises(ConfigError, match=f"'path' takes position encodings that embed; '{position}'") as caught:
        decoder.forward(spec, params_of(spec), tokens_of(1, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"conv": 0}, "conv: expected a number of tokens"),
        ({"rank": -1}, "rank: expected an integer >= 0"),
        ({"block": 0}, "block: expected a positive integer"),
        ({"gate": "both"}, "unknown Path.gate 'both'"),
        ({"qk_norm": "rms", "qk_norm_rotated": True}, "turned anew by every token"),
    ],
)
def test_bad_settings(args, message):
    with pytest.raises(ConfigError, match=message) as caught:
        spec_of(**args)
    assert "\n" not in str(caught.value)


def test_other_caches_are_refused():
    with pytest.raises(ConfigError, match="keeps them in cache 'full', not 'landmark'"):
        jaxlm.init_state(jaxlm.LanguageModel(spec_of()), 1, 8, "landmark")


def test_generation_with_a_cache_that_grows():
    """A state grown on the way writes what one of full size does."""
    spec = spec_of(gate="logits")
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    prompts = jnp.asarray(tokens_of(2, 5))
    whole = jaxlm.generate(model, params, prompts, max_new_tokens=9)
    grown = jaxlm.generate(model, params, prompts, max_new_tokens=9, cache={"name": "full", "args": {"chunk": 3}})
    np.testing.assert_array_equal(whole, grown)
