"""The adapter alone, with requests made here; and, where lm-eval is installed, its own tasks on documents made here."""

import importlib.util
import logging
import math
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.eval import harness as module
from jaxlm.eval.harness import _Requests, _settings, harness
from jaxlm.tokenize.base import BOS, EOS
from jaxlm.tokenize.byte import ByteTokenizer
from tests.tiny import params_of, tiny

MOST = 32
TOKENIZER = ByteTokenizer()
SPEC = tiny(mixer={"position": "rotary"}, repeats=1, vocab_size=TOKENIZER.vocab_size)
MODEL = jaxlm.LanguageModel(SPEC)
LIMITED = tiny(mixer={"position": {"name": "learned", "args": {"size": MOST}}}, repeats=1)
PARAMS = jax.tree.map(lambda p: p * 2 if p.ndim > 1 else p, params_of(SPEC))
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def lm(monkeypatch):
    """The adapter without its base class, so without lm-eval."""
    monkeypatch.setattr(module, "_class", lambda: _Requests)
    return harness(MODEL, PARAMS, TOKENIZER, batch_size=4, max_length=MOST, max_gen_toks=8)


@pytest.fixture(scope="module")
def direct():
    """(log-likelihood, greedy) of the last ``count`` of some ids, from the logits of a full pass."""
    logits_of = jax.jit(lambda tokens: MODEL.apply({"params": PARAMS}, tokens).logits)

    def one(ids, count):
        inputs = np.array(ids[:-1] + [0] * (MOST + 1 - len(ids)))
        logprobs = jax.nn.log_softmax(logits_of(inputs[None])[0, len(ids) - 1 - count : len(ids) - 1])
        total = sum(float(row[token]) for row, token in zip(logprobs, ids[-count:], strict=True))
        return total, logprobs.argmax(-1).tolist() == ids[-count:]

    return one


def request(*args):
    return SimpleNamespace(args=args)


def continued(prompt, new, stop=(257,)):
    """The text of ``new`` greedy tokens, up to a stop token."""
    padded = np.array([prompt + [0] * (MOST - len(prompt))])  # one shape for all
    ids = np.asarray(jaxlm.generate(MODEL, PARAMS, padded, 8, prompt_lengths=[len(prompt)]))[0, :new].tolist()
    ids = ids[: min([ids.index(token) for token in stop if token in ids], default=new)]
    return TOKENIZER.decode_bytes(ids).decode("utf-8", "replace")


def test_scores_of_pairs(lm, direct, caplog):
    pairs = [("a", " cat"), ("another", " dog"), ("a context that is far too long", " for it"), ("a", " x")]
    ids = [(lm.tok_encode(a), lm.tok_encode(b, add_special_tokens=False)) for a, b in pairs]
    with caplog.at_level(logging.WARNING):
        got = lm._loglikelihood_tokens([(pair, *two) for pair, two in zip(pairs, ids, strict=True)])
    for (total, greedy), (context, continuation) in zip(got, ids, strict=True):
        expected, likeliest = direct((context + continuation)[-MOST - 1 :], len(continuation))
        assert total == pytest.approx(expected, abs=1e-4) and greedy is likeliest
    assert lm.truncated == 1
    assert caplog.messages == ["1 of 4 requests are longer than 33 tokens and lose their beginning"]


def test_a_greedy_continuation_is_one(lm):
    context = lm.tok_encode("the")
    new = np.asarray(jaxlm.generate(MODEL, PARAMS, np.array([context]), 8))[0].tolist()[:3]
    other = [*new[:2], (new[2] + 1) % 256]
    scores = lm._loglikelihood_tokens([("", context, new), ("", context, other)])
    assert [greedy for _, greedy in scores] == [True, False]


def test_rolling(lm, direct):
    """Windows of at most what the model can represent, each token once, after BOS."""
    texts = ["short", "", "x" * MOST, "a text that is longer than what the model can represent, twice over " * 2]
    got = lm.loglikelihood_rolling([request(text) for text in texts])
    for text, total in zip(texts, got, strict=True):
        ids, expected = [256, *text.encode()], 0.0
        for start in range(1, len(ids), MOST):
            stop = min(start + MOST, len(ids))
            expected += direct(ids[max(0, stop - MOST - 1) : stop], stop - start)[0]
        assert total == pytest.approx(expected, rel=1e-5)
    assert lm.truncated == 0 and got[1] == 0


def test_generation(lm):
    """Requests of several settings, in the order they came; the beginning of a long context is cut."""
    long = "a context that is far too long for what is to come"
    asked = [("abc", {}), (long, {"max_gen_toks": 4}), ("abc", {"until": "x", "max_gen_toks": 4}), ("", {}), ("b", {})]
    got = lm.generate_until([request(*each) for each in asked])
    prompts = [[256, *b"abc"], [256, *long.encode()][-MOST + 4 :], [256, *b"abc"], [256], [256, *b"b"]]
    for text, prompt, (_, settings) in zip(got, prompts, asked, strict=True):
        whole = continued(prompt, settings.get("max_gen_toks", 8))
        assert text == (whole.partition(settings["until"])[0] if "until" in settings else whole)
    assert lm.truncated == 1


def test_seeds(monkeypatch):
    monkeypatch.setattr(module, "_class", lambda: _Requests)
    ask = [request(text, {"temperature": 1.0, "max_gen_toks": 8}) for text in "abcd"]
    make = lambda seed: harness(MODEL, PARAMS, TOKENIZER, batch_size=4, max_length=MOST, max_gen_toks=8, seed=seed)
    texts = [make(seed).generate_until(ask) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ((), 9, {})),
        ({"until": "a", "do_sample": False, "temperature": 0.7}, (("a",), 9, {})),
        ({"until": ["a", "b"], "temperature": 0.0, "max_new_tokens": 5}, (("a", "b"), 5, {})),
        ({"max_tokens": 4, "max_gen_toks": 3, "top_p": None}, ((), 3, {})),
        ({"temperature": 0.7, "top_p": 0.9}, ((), 9, {"temperature": 0.7, "top_p": 0.9})),
        ({"do_sample": True, "top_k": 5}, ((), 9, {"temperature": 1.0, "top_k": 5})),
        ({"repetition_penalty": 1.2}, ((), 9, {"repetition_penalty": 1.2})),
    ],
)
def test_generation_settings(given, expected):
    until, new, sampling = _settings(given, 9)
    assert (until, new, dict(sampling)) == expected


def test_special_tokens(lm):
    assert lm.tok_encode("a") == [256, 97] and lm.tok_encode("a", add_special_tokens=False) == [97]
    assert (lm.prefix_token_id, lm.eot_token_id) == (256, 257)
    lm.tokenizer = ByteTokenizer(specials=(EOS,))
    assert lm.tok_encode("a", add_special_tokens=True) == [97] and lm.prefix_token_id == 256
    lm.tokenizer = ByteTokenizer(specials=(BOS,))
    with pytest.raises(ConfigError, match="has no <eos>"):
        _ = lm.eot_token_id


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda lm: harness(jaxlm.LanguageModel(LIMITED), {}, TOKENIZER, max_length=33),
            "max_length 33: the model's .* represent 32",
        ),
        (
            lambda lm: harness(jaxlm.LanguageModel(LIMITED), {}, TOKENIZER),
            r"max_gen_toks 256: expected 1\.\.31, within max_length",
        ),
        (lambda lm: lm._loglikelihood_tokens([("", [256], [97] * 33)]), "continuation of 33 tokens is longer than 32"),
        (lambda lm: lm.generate_until([request("a", {"max_gen_toks": 32})]), "max_gen_toks 32 leaves no room"),
        (lambda lm: lm.generate_until([request("a", {"top_kk": 3})]), "field 'top_kk'; did you mean 'top_k'"),
    ],
)
def test_bad_input(lm, call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call(lm)
    assert "\n" not in str(error.value)


def test_without_lm_eval(monkeypatch):
    module._class.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'jaxlm\[eval\]'"):
        harness(MODEL, PARAMS, TOKENIZER, max_gen_toks=8)


QUESTIONS = [
    {"question": "two and two", "choices": ["four", "five", "zebra"], "answer": 0},
    {"question": "the sky", "choices": ["red", "blue", "loud"], "answer": 1},
    {"question": "a", "choices": ["b", "c", "d"], "answer": 2},
]


def tasks():
    """A task of each kind of request, as configurations of the harness with documents in memory."""
    import datasets

    def task(name, **settings):
        documents = {"test": datasets.Dataset.from_list(QUESTIONS)}
        return {"task": name, "custom_dataset": lambda **_: documents, "test_split": "test", **settings}

    bits = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    match = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    ask = {"doc_to_text": "Q: {{question}} A:"}
    return [
        task("choice", output_type="multiple_choice", doc_to_target="answer", doc_to_choice="choices", **ask),
        task("rolling", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}",
             metric_list=[bits]),
        task("text", output_type="generate_until", doc_to_target="{{choices[answer]}}", metric_list=[match],
             generation_kwargs={"until": ["\n"], "max_gen_toks": 6}, **ask),
    ]  # fmt: skip


@installed
def test_tasks_of_the_harness(direct):
    import lm_eval

    lm = harness(MODEL, PARAMS, TOKENIZER, batch_size=4, max_length=MOST, max_gen_toks=8)
    found = lm_eval.simple_evaluate(lm, tasks=tasks(), bootstrap_iters=0, log_samples=True)
    assert found is not None
    likeliest, bits = [], []
    for each in QUESTIONS:
        context = [256, *f"Q: {each['question']} A:".encode()]
        totals = [direct(context + list(f" {choice}".encode()), len(choice) + 1)[0] for choice in each["choices"]]
        likeliest.append(int(np.argmax(totals)) == each["answer"])
        text = each["question"].encode()
        bits.append(-direct([256, *text], len(text))[0] / math.log(2))
    results = found["results"]
    assert results["choice"]["acc,none"] == pytest.approx(np.mean(likeliest))
    size = sum(len(each["question"]) for each in QUESTIONS)
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(sum(bits) / size, rel=1e-5)
    for sample in found["samples"]["text"]:
        (context, _) = sample["arguments"][0]
        assert sample["resps"] == [[continued([256, *context.encode()], 6, stop=(257, 10))]]


@installed
@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 64, 100])
def test_windows_are_those_of_the_harness(length):
    from lm_eval.utils import get_rolling_token_windows

    from jaxlm.eval.likelihood import rolling_windows

    tokens = list(range(length))
    theirs = [(inputs + targets[-1:], len(targets)) for inputs, targets in get_rolling_token_windows(tokens, -1, 32, 1)]
    assert list(rolling_windows(tokens, -1, 32)) == theirs
