"""Dynamic tokenization of a batch for a trained model: frequent pairs become one token, with embeddings made for them.

Paper: Feher et al. 2024, Retrofitting Large Language Models with Dynamic Tokenization. The merges are those of
`jaxlm.tokenize.dynamic`; a merged token has the mean of its pieces' rows, or what a hypernetwork predicts from them, as
input and as output embedding, so that a decoder's loss is over the vocabulary and the merged tokens together.

    batch = dynamic_batch(tokenizer, texts, merges=100)
    inputs_embeds, extended = dynamic_embeddings(model, params, batch)
    nats, size = dynamic_score(model, params, batch)        bits per byte: nats.sum() / size.sum() / log(2)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import shown
from jaxlm.core.types import Params
from jaxlm.model import decoder
from jaxlm.model.embedding_hypernetwork import EmbeddingHypernetwork, Tables, tables_of
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec
from jaxlm.ops.cross_entropy import token_losses
from jaxlm.ops.dense import dense
from jaxlm.tokenize.base import BOS, Tokenizer, as_bytes
from jaxlm.tokenize.dynamic import dynamic_merges
from jaxlm.tokenize.pretokens import split as cut

Predict = Callable[[ModelSpec, Mapping[str, jax.Array], jax.Array, jax.Array], Tables]


@dataclasses.dataclass(frozen=True, eq=False)
class DynamicBatch:
    """Texts after the batch's merges.

    Attributes:
      tokens: int32 [B, L], ids of the tokenizer, and from ``vocab_size`` on merged tokens in the order of merges.
      segment_ids: int32 [B, L], 1 for tokens, 0 for padding.
      spans: int64 [B, L, 2], the bytes of its text that each token stands for; empty for padding and special tokens.
      pieces: of each merged token the ids it was merged of.
      merges: (left, right, count) in bytes, as they were chosen.
      vocab_size: of the tokenizer.
      before: int64 [B], tokens of each text before the merges.
    """

    tokens: NDArray[np.int32]
    segment_ids: NDArray[np.int32]
    spans: NDArray[np.int64]
    pieces: list[list[int]]
    merges: list[tuple[bytes, bytes, int]]
    vocab_size: int
    before: NDArray[np.int64]

    def padded_pieces(self) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """``pieces`` as int32 [M, P] and which of them are there, bool [M, P]."""
        width = max(map(len, self.pieces), default=1)
        ids, mask = np.zeros((len(self.pieces), width), np.int32), np.zeros((len(self.pieces), width), np.bool_)
        for row, found in enumerate(self.pieces):
            ids[row, : len(found)], mask[row, : len(found)] = found, True
        return ids, mask


def dynamic_batch(
    tokenizer: Tokenizer,
    texts: Sequence[str | bytes],
    merges: int,
    *,
    split: tuple[str, ...] = ("space",),
    bos: bool | None = None,
) -> DynamicBatch:
    """Tokenizes texts and merges the batch's frequent pairs.

    Args:
      merges: the most merges; 0 for none.
      split: rules of `jaxlm.tokenize.pretokens` that cut text into words, which merges stay inside of. A token that
        reaches from one word into another is a word of its own.
      bos: whether texts begin with that special token; by default, if the tokenizer's do.

    Raises `ConfigError` for a negative number of merges, and for a tokenizer whose tokens do not spell a text byte by
    byte (one that normalises it, puts a space before it, or has unknown tokens).
    """
    require(merges >= 0, f"dynamic_batch: merges should be 0 or more, got {merges}")
    table, first = tokenizer.token_bytes, tokenizer.adds_bos if bos is None else bos
    ids_of: dict[bytes, int] = {}
    texts_of_words, before = [], []
    for text in texts:
        ids, data = tokenizer.encode(text), as_bytes(text)
        exact = b"".join([table[i] for i in ids]) == data and all(table[i] for i in ids)
        require(
            exact,
            f"dynamic_batch: the tokens of the {tokenizer.name!r} tokenizer do not spell the text {shown(data)} as it "
            "is; bytes of words need tokens of bytes",
        )
        words, pieces = _words(data, [table[i] for i in ids], split), iter(ids.tolist())
        for word in words:
            for token in word:
                ids_of.setdefault(token, next(pieces))
        texts_of_words.append(words)
        before.append(len(ids))
    chosen, after = dynamic_merges(texts_of_words, merges)
    spelt = {token: [i] for token, i in ids_of.items()}
    new: dict[bytes, int] = {}
    for left, right, _ in chosen:
        if left + right not in spelt:
            spelt[left + right] = spelt[left] + spelt[right]
            new[left + right] = tokenizer.vocab_size + len(new)
    rows = [[token for word in words for token in word] for words in after]
    length = max((len(row) for row in rows), default=0) + first
    tokens, segments = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.int32)
    spans = np.zeros((len(rows), length, 2), np.int64)
    for row, found in enumerate(rows):
        here = slice(int(first), int(first) + len(found))
        if first:
            tokens[row, 0] = tokenizer.special(BOS)
        tokens[row, here] = [new.get(token, ids_of.get(token, 0)) for token in found]
        segments[row, : here.stop] = 1
        stops = np.cumsum([0, *map(len, found)])
        spans[row, here] = np.stack([stops[:-1], stops[1:]], -1)
    return DynamicBatch(
        tokens,
        segments,
        spans,
        [spelt[token] for token in new],
        chosen,
        tokenizer.vocab_size,
        np.array(before, np.int64),
    )


def _words(data: bytes, tokens: list[bytes], split: tuple[str, ...]) -> list[list[bytes]]:
    """The tokens of a text by words."""
    ends = np.cumsum([len(piece) for piece in cut(data, split)])
    words: list[list[bytes]] = []
    at, last = 0, -1
    for token in tokens:
        # The words in which it begins and ends; a token of two words is alone.
        start, stop = np.searchsorted(ends, [at, at + len(token) - 1], side="right")
        if start == stop == last:
            words[-1].append(token)
        else:
            words.append([token])
        at, last = at + len(token), int(start) if start == stop else -1
    return words


def mean_of_pieces(base: ModelSpec, tables: Mapping[str, jax.Array], pieces: jax.Array, mask: jax.Array) -> Tables:
    """Rows of merged tokens as the average of their pieces' rows: a `Predict`."""
    del base
    share = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
    mean = functools.partial(jnp.einsum, precision="highest")
    out = {"table": mean("np,npd->nd", share, tables["table"].astype(jnp.float32)[pieces])}
    if "kernel" in tables:
        out["kernel"] = mean("np,npd->dn", share, tables["kernel"].astype(jnp.float32).T[pieces])
    if "bias" in tables:
        out["bias"] = mean("np,np->n", share, tables["bias"][pieces])
    return out


def predicted(network: EmbeddingHypernetwork, params: Params) -> Predict:
    """Rows of merged tokens by a trained hypernetwork; of tokens with more pieces than it reads, by the first ones."""

    def predict(base: ModelSpec, tables: Mapping[str, jax.Array], pieces: jax.Array, mask: jax.Array) -> Tables:
        size = network.max_pieces
        out = network.predict(params, base, tables, pieces[:, :size], mask[:, :size])
        return {name: value for name, value in out.items() if name in tables}

    return predict


def dynamic_embeddings(
    model: LanguageModel, params: Params, batch: DynamicBatch, predict: Predict = mean_of_pieces
) -> tuple[jax.Array, dict[str, Any]]:
    """What the model reads in place of tokens, and its parameters with rows for the merged tokens.

    Args:
      predict: makes the rows of merged tokens, `mean_of_pieces` or `predicted`.

    Returns:
      ``inputs_embeds`` [B, L, D] for the model's call, with ``batch.segment_ids``; and parameters whose vocabulary is
      the model's ids followed by the merged tokens, for the loss (`dynamic_score`).

    Raises `ConfigError` for a model whose vocabulary is not the tokenizer's.
    """
    spec = model.spec
    require(
        batch.vocab_size <= spec.vocab_size
        and (batch.tokens.size == 0 or batch.tokens.max() < batch.vocab_size + len(batch.pieces)),
        f"the batch is of a tokenizer with {batch.vocab_size} ids, the model's vocabulary has {spec.vocab_size}",
    )
    tables = tables_of(spec, params)
    if batch.pieces:
        made = predict(spec, tables, *map(jnp.asarray, batch.padded_pieces()))
        tables = {
            name: jnp.concatenate([old, made[name].astype(old.dtype)], axis=1 if name == "kernel" else 0)
            for name, old in tables.items()
        }
    x = tables["table"][_rows(spec, batch)].astype(jnp.dtype(spec.dtype)) * spec.embed_multiplier
    x = dense(x, params["embed"]["up"]) if spec.embed_width else x
    head = {**params.get("head", {}), **{name: value for name, value in tables.items() if name != "table"}}
    extended = {**params, "embed": {**params["embed"], "table": tables["table"]}}
    return x, {**extended, "head": head} if head else extended


def dynamic_score(
    model: LanguageModel, params: Params, batch: DynamicBatch, predict: Predict = mean_of_pieces
) -> tuple[jax.Array, NDArray[np.int64]]:
    """The loss in nats of each token, float32 [B, L - 1], and how many bytes it stands for, int64 [B, L - 1].

    Token t + 1 is at t; padding has loss and bytes 0. Bits per byte are ``nats.sum() / bytes.sum() / log(2)``.
    """
    x, extended = dynamic_embeddings(model, params, batch, predict)
    segments = jnp.asarray(batch.segment_ids)
    losses = _losses(model.spec, extended, x, segments, jnp.asarray(_rows(model.spec, batch)[:, 1:]))
    sizes = (batch.spans[..., 1] - batch.spans[..., 0])[:, 1:]
    return losses, sizes


@functools.partial(jax.jit, static_argnums=0)
def _losses(spec: ModelSpec, params: Params, x: jax.Array, segments: jax.Array, targets: jax.Array) -> jax.Array:
    hidden = decoder.forward(spec, params, inputs_embeds=x, segment_ids=segments, logits=False).hidden
    losses, _ = token_losses(decoder.unembed(spec, params, hidden[:, :-1]), targets)
    return jnp.where(segments[:, 1:] > 0, losses, 0.0)


def _rows(spec: ModelSpec, batch: DynamicBatch) -> NDArray[np.int32]:
    """The row of each token: merged ones come behind the model's own, which may be more than the tokenizer's ids."""
    return np.where(batch.tokens >= batch.vocab_size, batch.tokens + spec.vocab_size - batch.vocab_size, batch.tokens)
