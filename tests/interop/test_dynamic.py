"""Dynamic tokenization of a batch: its tokens and spans, embeddings of merged tokens, bits per byte."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.interop.dynamic import dynamic_batch, dynamic_embeddings, dynamic_score, predicted
from jaxlm.model import decoder
from jaxlm.model.embedding_hypernetwork import EmbeddingHypernetwork
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.base import BOS
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.pretokens import split as cut
from tests.tiny import close, draw_params, params_of, tiny

TEXTS = ["the thin thing there thence", "that thing then, naïve thing", "", b"\xff thin thing"]
TOKENIZER = BpeTokenizer.train(TEXTS[:2], 258, specials=())
BEGINS = dataclasses.replace(TOKENIZER, specials=(BOS,))


def model_of(**changes):
    spec = tiny(vocab_size=TOKENIZER.vocab_size + 5, repeats=1, **changes)
    return LanguageModel(spec), params_of(spec)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BEGINS], ids=["plain", "bos"])
@pytest.mark.parametrize("merges", [0, 3, 100])
def test_tokens_and_spans(tokenizer, merges):
    batch, first = dynamic_batch(tokenizer, TEXTS, merges), tokenizer is BEGINS
    table = [*tokenizer.token_bytes, *(b"".join(tokenizer.token_bytes[i] for i in ids) for ids in batch.pieces)]
    for row, text in enumerate(TEXTS):
        data = text.encode() if isinstance(text, str) else text
        count = int(batch.segment_ids[row].sum())
        assert (batch.segment_ids[row, :count] == 1).all()
        if first:
            assert batch.tokens[row, 0] == tokenizer.special(BOS) and not batch.spans[row, 0].any()
        pieces = [data[a:b] for a, b in batch.spans[row, int(first) : count]]
        assert b"".join(pieces) == data and pieces == [table[i] for i in batch.tokens[row, int(first) : count]]
        ends = {0, *np.cumsum([len(word) for word in cut(data, ("space",))]).tolist()}
        if merges == 100 and row in (0, 1):  # "th" is everywhere: some words are one token
            assert len(pieces) < len(tokenizer.encode(text))
        for a, b in batch.spans[row, int(first) : count]:  # never across a word
            assert not any(a < end < b for end in ends)
    if merges == 0:
        assert batch.pieces == [] and batch.merges == []
        assert batch.tokens[0][batch.segment_ids[0] > 0][int(first) :].tolist() == tokenizer.encode(TEXTS[0]).tolist()
    else:
        assert batch.pieces and len(batch.merges) <= merges and all(count >= 2 for _, _, count in batch.merges)
    assert batch.before.tolist() == [len(tokenizer.encode(text)) for text in TEXTS]


@pytest.mark.parametrize(
    "changes", [{}, {"tied_head": True, "embed_multiplier": 2.0}, {"embed_width": 8, "head_bias": True}]
)
def test_without_merges_it_is_the_model(changes):
    model, params = model_of(**changes)
    batch = dynamic_batch(TOKENIZER, TEXTS, 0)
    x, _ = dynamic_embeddings(model, params, batch)
    segments = jnp.asarray(batch.segment_ids)
    call = jax.jit(lambda p, **k: decoder.forward(model.spec, p, segment_ids=segments, **k).logits)
    theirs = call(params, tokens=jnp.asarray(batch.tokens))
    real = np.asarray(batch.segment_ids) > 0
    close(np.asarray(call(params, inputs_embeds=x))[real], np.asarray(theirs)[real])
    losses, sizes = dynamic_score(model, params, batch)
    wanted = -np.take_along_axis(np.asarray(jax.nn.log_softmax(theirs))[:, :-1], batch.tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(losses, np.where(real[:, 1:], wanted, 0), atol=1e-5)
    lengths = batch.spans[..., 1] - batch.spans[..., 0]
    np.testing.assert_array_equal(sizes, lengths[:, 1:])


def test_merged_rows():
    """The mean of pieces by hand, behind the model's own rows; an untrained hypernetwork gives the same."""
    model, params = model_of(head_bias=True)
    batch = dynamic_batch(TOKENIZER, TEXTS, 6)
    assert any(len(ids) > 2 for ids in batch.pieces)
    _, extended = dynamic_embeddings(model, params, batch)
    size = model.spec.vocab_size
    for old, new in (
        (params["embed"]["table"], extended["embed"]["table"]),
        (params["head"]["kernel"].T, extended["head"]["kernel"].T),
        (params["head"]["bias"], extended["head"]["bias"]),
    ):
        np.testing.assert_array_equal(new[:size], old)
        for row, ids in zip(np.asarray(new[size:]), batch.pieces, strict=True):
            np.testing.assert_allclose(row, np.asarray(old)[ids].mean(0), atol=1e-6)
    network = EmbeddingHypernetwork(width=8, heads=2)
    trained = draw_params(network.params(model.spec))
    fresh = {
        name: {**p, "out": 0 * p["out"], "out_bias": 0 * p["out_bias"]}
        for name, p in trained.items()
        if "project" in name
    }
    close(dynamic_embeddings(model, params, batch, predicted(network, trained | fresh))[1], extended)
    other = dynamic_embeddings(model, params, batch, predicted(network, trained))[1]
    assert np.abs(other["embed"]["table"] - extended["embed"]["table"]).max() > 0.01


def test_score_of_merged_tokens():
    """Over the vocabulary and the merged tokens together; the bytes that are scored are those of the text."""
    model, params = model_of()
    plain, merged = (dynamic_batch(BEGINS, TEXTS, n) for n in (0, 8))
    assert merged.tokens.shape[1] < plain.tokens.shape[1]
    for batch in (plain, merged):
        losses, sizes = dynamic_score(model, params, batch)
        assert losses.shape == sizes.shape and np.isfinite(losses).all()
        assert sizes.sum() == sum(len(text.encode() if isinstance(text, str) else text) for text in TEXTS)
    x, extended = dynamic_embeddings(model, params, merged)
    assert x.shape == (*merged.tokens.shape, model.spec.width)
    assert extended["head"]["kernel"].shape[1] == model.spec.vocab_size + len(merged.pieces)


class Spaced(ByteTokenizer):
    """Puts a space before a text, as SentencePiece does."""

    def _encode(self, data):
        return super()._encode(b" " + data)


class Unknowing(ByteTokenizer):
    """Says nothing but "unknown"."""

    def _encode(self, data):
        return np.array([self.special(BOS)], np.int32)


@pytest.mark.parametrize("tokenizer", [Spaced(), Unknowing()])
def test_tokens_that_do_not_spell_the_text(tokenizer):
    with pytest.raises(ConfigError, match="do not spell the text b'ab ab' as it is") as error:
        dynamic_batch(tokenizer, ["ab ab"], 2)
    assert "\n" not in str(error.value)


def test_bad_input():
    model, params = model_of()
    large = BpeTokenizer.train(TEXTS[:2], 268)
    for call, message in [
        (lambda: dynamic_batch(TOKENIZER, TEXTS, -1), "merges should be 0 or more"),
        (
            lambda: dynamic_embeddings(model, params, dynamic_batch(large, TEXTS, 1)),
            "tokenizer with 268 ids, the model's",
        ),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
