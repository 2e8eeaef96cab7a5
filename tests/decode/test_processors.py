"""Logits processors against plain numpy, and number for number against those of transformers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import registry
from jaxlm.core.errors import ConfigError
from jaxlm.decode.grammar.constraint import Masks
from jaxlm.decode.grammar.regex import regex
from jaxlm.decode.grammar.vocabulary import Vocabulary
from jaxlm.decode.processor import apply_all, init_all, make_all

VOCAB = 31
RNG = np.random.default_rng(0)
LOGITS = (RNG.standard_normal((4, VOCAB)) * 3).astype(np.float32)
PROMPT = RNG.integers(0, VOCAB, (4, 6))
LENGTHS = np.array([6, 1, 4, 5])
TOKENS = RNG.integers(0, VOCAB, (3, 4))  # chosen one after the other by the four rows
END = int(np.setdiff1d(np.arange(VOCAB), TOKENS)[0])
WRITTEN = Masks(regex("[a-z]*"), Vocabulary(tuple(b"z" * (t in TOKENS) for t in range(VOCAB)), (END,)))


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def nucleus(x, p):
    order = np.argsort(-x)
    size = int(np.searchsorted(np.cumsum(softmax(x)[order]), p)) + 1
    return keep(x, order[:size])


def keep(x, index):
    out = np.full_like(x, -np.inf)
    out[index] = x[index]
    return out


def penalised(x, seen, penalty):
    return np.array([(v * penalty if v < 0 else v / penalty) if t in seen else v for t, v in enumerate(x)], np.float32)


# name, arguments, what one row becomes (logits, seen tokens), and the processor of transformers with its arguments
CASES = [
    ("repetition", {"penalty": 1.7}, lambda x, seen: penalised(x, seen, 1.7), ("RepetitionPenalty", (1.7,))),
    ("repetition", {"penalty": 0.6}, lambda x, seen: penalised(x, seen, 0.6), ("RepetitionPenalty", (0.6,))),
    ("suppress", {"tokens": (3, 0, 30)}, lambda x, _: keep(x, [t for t in range(VOCAB) if t not in (0, 3, 30)]),
     ("SuppressTokens", ((3, 0, 30),))),
    ("temperature", {"temperature": 0.35}, lambda x, _: x / np.float32(0.35), ("Temperature", (0.35,))),
    ("top_k", {"k": 5}, lambda x, _: keep(x, np.argsort(-x)[:5]), ("TopK", (5,))),
    ("top_p", {"p": 0.8}, lambda x, _: nucleus(x, 0.8), ("TopP", (0.8,))),
    ("top_p", {"p": 0.01}, lambda x, _: nucleus(x, 0.01), ("TopP", (0.01,))),
    ("min_p", {"p": 0.1}, lambda x, _: keep(x, softmax(x) >= 0.1 * softmax(x).max()), ("MinP", (0.1,))),
    ("automaton", {"after": [[0, -1], [-1, 1]], "classes": [int(t not in TOKENS) for t in range(VOCAB)]},
     lambda x, _: keep(x, np.unique(TOKENS)), ("PrefixConstrained", (lambda *_: np.unique(TOKENS).tolist(), 1))),
    ("constraint", {"constraint": WRITTEN}, lambda x, _: keep(x, np.append(TOKENS, END)),
     ("PrefixConstrained", (lambda *_: np.unique(np.append(TOKENS, END)).tolist(), 1))),
]  # fmt: skip
ids = [f"{name}-{i}" for i, (name, *_) in enumerate(CASES)]


def ours(processors, logits=LOGITS):
    """The logits after each of: the prompt, and then each of `TOKENS`."""
    prompt, real = jnp.asarray(PROMPT), jnp.asarray(np.arange(PROMPT.shape[1]) < LENGTHS[:, None])
    states, out = init_all(processors, prompt, real, VOCAB), []
    for step, token in enumerate([None, *TOKENS]):
        token = None if token is None else jnp.asarray(token)
        result, after = apply_all(processors, jnp.asarray(logits), token, step, states)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, states)
        states = after
        out.append(np.asarray(result))
    return out


def seen_by(row, step):
    return {*PROMPT[row, : LENGTHS[row]].tolist(), *TOKENS[:step, row].tolist()}


def test_every_processor_has_a_case():
    assert {name for name, *_ in CASES} == set(registry.methods("processor"))


@pytest.mark.parametrize("name, arguments, oracle, _", CASES, ids=ids)
def test_against_numpy(name, arguments, oracle, _):
    for step, got in enumerate(ours(make_all([{"name": name, "args": arguments}], VOCAB))):
        expected = np.stack([oracle(x, seen_by(row, step)) for row, x in enumerate(LOGITS)])
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("name, arguments, oracle, _", CASES, ids=ids)
def test_defaults_and_values_are_data(name, arguments, oracle, _):
    """What is not static is an argument of the compiled function: another value compiles nothing."""
    make = registry.get("processor", name)
    make().check_vocabulary(100)
    fields = [f.name for f in dataclasses.fields(make) if not f.metadata.get("static")]
    leaves, tree = jax.tree.flatten(make(**arguments))
    assert len(leaves) == len(fields)
    assert jax.tree.unflatten(tree, [object()] * len(leaves))  # as jax does


@pytest.mark.torch
@pytest.mark.parametrize("name, arguments, _, peer", CASES, ids=ids)
def test_against_transformers(name, arguments, _, peer):
    torch, process = pytest.importorskip("torch"), pytest.importorskip("transformers.generation.logits_process")
    kind, values = peer
    cls = getattr(process, f"{kind}LogitsWarper", None) or getattr(process, f"{kind}LogitsProcessor")
    for step, got in enumerate(ours(make_all([{"name": name, "args": arguments}], VOCAB))):
        rows = []
        for row, x in enumerate(LOGITS):  # one by one: transformers would penalise the padding
            tokens = torch.tensor([[*PROMPT[row, : LENGTHS[row]], *TOKENS[:step, row]]])
            rows.append(cls(*values)(tokens, torch.from_numpy(x[None].copy()))[0].numpy())
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(rows))
        np.testing.assert_allclose(got, np.stack(rows), rtol=1e-6)


@pytest.mark.torch
def test_the_whole_chain_against_transformers():
    """Order matters: the sampling distributions that `generate` of transformers builds from the same settings."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    process = transformers.generation.logits_process
    chain = transformers.LogitsProcessorList(
        [
            process.RepetitionPenaltyLogitsProcessor(1.3),
            process.TemperatureLogitsWarper(0.7),
            process.TopKLogitsWarper(9),
            process.TopPLogitsWarper(0.9),
            process.MinPLogitsWarper(0.05),
        ]
    )
    names = {"repetition": 1.3, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.05}
    got = ours(make_all([registry.get("processor", name)(value) for name, value in names.items()], VOCAB))[2]
    for row, x in enumerate(LOGITS):
        tokens = torch.tensor([[*PROMPT[row, : LENGTHS[row]], *TOKENS[:2, row]]])
        expected = chain(tokens, torch.from_numpy(x[None].copy()))[0].softmax(-1).numpy()
        np.testing.assert_allclose(jax.nn.softmax(got[row]), expected, atol=1e-6)


@pytest.mark.parametrize(
    "value, message",
    [
        ("top_q", "unknown processor 'top_q'"),
        ({"name": "top_p", "args": {"q": 1}}, "unknown field of TopP"),
        ({"name": "top_p", "args": {"p": 1.5}}, "top_p"),
        ({"name": "top_k", "args": {"k": 32}}, "top_k"),
        ({"name": "min_p", "args": {"p": -0.1}}, "min_p"),
        ({"name": "temperature", "args": {"temperature": 0.0}}, "temperature"),
        ({"name": "repetition", "args": {"penalty": 0.0}}, "repetition_penalty"),
        ({"name": "suppress", "args": {"tokens": (31,)}}, "outside the vocabulary of 31"),
        ({"name": "suppress", "args": {"tokens": tuple(range(31))}}, "every token"),
    ],
)
def test_bad_arguments_are_one_line(value, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_all([value], VOCAB)
    assert "\n" not in str(error.value)
