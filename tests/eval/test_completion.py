"""Completions against `jaxlm.generate` alone, one prompt at a time."""

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.eval import completion
from jaxlm.eval.completion import completions
from jaxlm.tokenize.byte import ByteTokenizer
from tests.tiny import params_of, tiny

TOKENIZER = ByteTokenizer()
SPEC = tiny(mixer={"position": "rotary"}, repeats=1, vocab_size=TOKENIZER.vocab_size + 2)
MODEL = jaxlm.LanguageModel(SPEC)
PARAMS = jax.tree.map(lambda p: p * 3 if p.ndim > 1 else p, params_of(SPEC))
TEXTS = ["a prompt", "b", "another one, longer", "the same", "the same"]  # two buckets
PROMPTS = [TOKENIZER.encode(text, bos=True) for text in TEXTS]
NEW = 24


def alone(i, temperature=0.0, key=None):
    """The text of one prompt's new tokens: of its bytes up to EOS, ids without meaning left out."""
    size = len(PROMPTS[i])
    prompt = np.pad(PROMPTS[i], (0, 32 - size))[None]  # one shape for all
    out = jaxlm.generate(MODEL, PARAMS, prompt, NEW, temperature, key, [size], TOKENIZER.stop_ids, rows=[i])
    ids = np.asarray(out)[0].tolist()
    ids = ids[: ids.index(TOKENIZER.stop_ids[0])] if TOKENIZER.stop_ids[0] in ids else ids
    return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def complete(*until, **options):
    return completions(MODEL, PARAMS, TOKENIZER, PROMPTS, until, **{"max_new_tokens": NEW, "batch_size": 2, **options})


@pytest.fixture(scope="module")
def free():
    return complete()


def test_equals_one_prompt_at_a_time(free):
    assert free == [alone(i) for i in range(len(PROMPTS))] and free[3] == free[4]
    assert complete(batch_size=5) == free


def test_noise_belongs_to_the_prompt():
    key = jax.random.key(1)
    sampled = complete(temperature=1.0, key=key)
    assert sampled == [alone(i, 1.0, key) for i in range(len(PROMPTS))] and sampled[3] != sampled[4]


def test_stop_strings(free, monkeypatch):
    """The earliest ends it and is left out, wherever the looks for it fall."""
    full = free[2]
    string, other = full[6:9], full[10:12]
    assert full.index(string) <= 6
    for every in (1, 7, NEW):
        monkeypatch.setattr(completion, "EVERY", every)
        got = complete(string, other)
        assert got[2] == full[: min(full.index(string), full.index(other))]
        for text, whole in zip(got, free, strict=True):
            assert whole.startswith(text) and string not in text and other not in text


def test_rows_end_the_loop_early(free, monkeypatch):
    looks = []
    monkeypatch.setattr(completion, "EVERY", 1)
    add = completion.Completion.add
    monkeypatch.setattr(completion.Completion, "add", lambda self, new: looks.append(len(new)) or add(self, new))
    complete(*{text[0] for text in free}, batch_size=5)
    assert sum(looks) <= 2 * len(PROMPTS)


def test_bad_input():
    with pytest.raises(ConfigError, match=r"prompt \[1\] is empty"):
        completions(MODEL, PARAMS, TOKENIZER, [PROMPTS[0], np.zeros(0, int)])
    with pytest.raises(ConfigError, match="batch_size: expected at least 1, got 0"):
        complete(batch_size=0)
