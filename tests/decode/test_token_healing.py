"""Token healing: what tokens are allowed, what `generate` then makes, and what it says of the next byte."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.decode.byte_level import FullPass, byte_view
from jaxlm.decode.token_healing import Healing, heal, healed_next_byte, take_back
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from tests.tiny import params_of, tiny

TOKENIZER = BpeTokenizer(((97, 98), (256, 97), (98, 98), (258, 97), (32, 256)), split=())  # ab aba bb bba " ab"


def model_of(tokenizer=TOKENIZER):
    spec = tiny({"position": "rotary"}, repeats=1, vocab_size=tokenizer.vocab_size + 2)
    return jaxlm.LanguageModel(spec), params_of(spec)


def test_what_is_taken_back():
    assert TOKENIZER.encode("aabb").tolist() == [97, 256, 98]
    kept, text, allowed = take_back(TOKENIZER, "aabb")
    assert (kept, text, allowed.tolist()) == ([97, 256], b"b", [98, 258, 259])
    kept, text, allowed = take_back(TOKENIZER, "aabb", 2)
    assert (kept, text, allowed.tolist()) == ([97], b"abb", [])


@pytest.mark.parametrize("shorter", [False, True])
def test_allowed_tokens_step_by_step(shorter):
    """Against the definition, for every choice of tokens on the way."""
    texts, size = (b"aba", b"b", b""), TOKENIZER.vocab_size + 2
    made = heal(TOKENIZER, ["a"]).processor
    table = np.full((3, 3), -1, np.int32)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = list(text)
    processor = Healing(table, made.pieces, shorter)
    processor.check_vocabulary(size)
    state, token, said = processor.init(jnp.zeros((3, 1), jnp.int32), None, size), None, [b"", b"", b""]
    rng, pieces = np.random.default_rng(0), [*TOKENIZER.token_bytes, b"", b""]
    for step in range(4):
        logits, state = processor(jnp.zeros((3, size)), token, step, state)
        for row, (text, before) in enumerate(zip(texts, said, strict=True)):
            rest = text[len(before) :]
            for i, piece in enumerate(pieces):
                may = piece.startswith(rest) or (shorter and piece and rest.startswith(piece))
                assert (logits[row, i] == 0) == bool(may or not rest), (text, before, piece)
        token = np.array([rng.choice(np.flatnonzero(np.isfinite(row))) for row in np.asarray(logits)], np.int32)
        said = [before + pieces[i] for before, i in zip(said, token, strict=True)]
        token = jnp.asarray(token)
    assert all(one.startswith(text) for one, text in zip(said, texts, strict=True))


@pytest.mark.parametrize("tokens", [1, 2])
def test_generated_texts_go_on_from_the_prompt(tokens):
    model, params = model_of()
    prompts = ["aabab", "ab ab", b"bb\xff"]
    healed = heal(TOKENIZER, prompts, tokens)
    arguments = (healed.prompt, 5, 1.0, jax.random.key(0), healed.lengths)
    new = np.asarray(jaxlm.generate(model, params, *arguments, processors=[healed.processor]))
    for row, prompt, text in zip(new, prompts, healed.texts, strict=True):
        ids = row[row < TOKENIZER.vocab_size]
        assert TOKENIZER.decode_bytes(ids).startswith(text) and text
        assert (prompt if isinstance(prompt, bytes) else prompt.encode()).endswith(text)


def test_next_byte_by_its_definition():
    model, params = model_of()
    apply, prompt = FullPass(model, params), "aabb"
    found = healed_next_byte(apply, TOKENIZER, [prompt])[0]
    assert np.isclose(np.exp(found).sum(), 1)
    head = (TOKENIZER.special_ids["<bos>"], 97, 256)
    first, second = np.exp(apply([head, (*head, 98)]))
    begun = {
        byte: sum(second[i] for i, t in enumerate(TOKENIZER.token_bytes) if t[:1] == bytes([byte])) for byte in b"abc"
    }
    masses = {ord("a"): first[98] * begun[97], ord("b"): first[98] * begun[98] + first[258] + first[259]}
    masses |= {ord("c"): first[98] * begun[99], 256: first[98] * second[TOKENIZER.stop_ids[0]]}
    total = masses[97] / np.exp(found[97])
    for byte, mass in masses.items():
        np.testing.assert_allclose(np.exp(found[byte]) * total, mass, rtol=1e-6)


def test_bytes_need_no_healing():
    model, params = model_of(ByteTokenizer())
    healed = healed_next_byte(FullPass(model, params), ByteTokenizer(), ["abc"])
    exact = byte_view(model, params, ByteTokenizer(), implementation="search").next_byte(["abc"])
    np.testing.assert_allclose(healed, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: take_back(TOKENIZER, ""), "prompt is empty"),
        (lambda: take_back(TOKENIZER, "a", 0), "take back 1 token or more"),
        (lambda: heal(TOKENIZER, []), "prompts: expected a list"),
        (lambda: heal(BpeTokenizer(specials=()), ["a"]), "nothing is left"),
        (lambda: heal(TOKENIZER, ["ab"]).processor.init(jnp.zeros((2, 3), int), None, 261), "prepared for 1 rows"),
        (lambda: heal(TOKENIZER, ["ab"]).processor.check_vocabulary(100), "the model's vocabulary is 100"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
