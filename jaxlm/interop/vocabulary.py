"""Another tokenizer for a model that is trained: its embeddings, output head and biases rebuilt row by row.

    model, params = swap_vocabulary(model, params, old_tokenizer, new_tokenizer, init="focus", texts=texts)
    model, params = extend_vocabulary(model, params, old_tokenizer, larger_tokenizer)     # old rows bit for bit

Tokens that both vocabularies have keep their rows; the others get theirs from a method of the slot ``embedding_init``.
Swapping a tokenizer for itself changes no bit. `save_vocabulary` writes the result as a folder for transformers.

Papers: those of the methods; extension as in Larcher et al. 2023, Cabrita: closing the gap for foreign languages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import make, require
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import Tree, map_specs
from jaxlm.core.types import Params
from jaxlm.interop.embedding_init.base import EmbeddingInit, Material
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.tokenize.base import Tokenizer
from jaxlm.tokenize.hf import check_vocabulary
from jaxlm.tokenize.overlap import Ids, check_complete, overlap, pieces_of
from jaxlm.tokenize.static_vectors import read_rows, read_words, spread, static_vectors, subword_vectors, words_of

# The parameters with a row for each token, and the axis of the rows.
ROWS = {"embed/table": 0, "head/kernel": 1, "head/bias": 0}


@dataclasses.dataclass(frozen=True, eq=False)
class Auxiliary:
    """Vectors of tokens in a space of no model: [T, A] of the new tokenizer's, [V, A] of the old one's (or None)."""

    target: NDArray | None = None
    source: NDArray | None = None


def swap_vocabulary(
    model: LanguageModel,
    params: Params,
    source: Tokenizer,
    target: Tokenizer,
    init: Any = "mean_of_pieces",
    *,
    auxiliary: Auxiliary | None = None,
    texts: Iterable[str | bytes] = (),
    pad_to_multiple: int = 0,
    seed: int = 0,
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model for another tokenizer.

    Args:
      model, params: trained with ``source``. Rows beyond its ids (padding of the table) may be there.
      source, target: tokenizers that know their tokens' bytes; ``target`` has all bytes.
      init: a method of the slot ``embedding_init``, by name, mapping or object.
      auxiliary: vectors for the methods that need them; by default `auxiliary_vectors` makes them from ``texts``.
      pad_to_multiple: the number of rows is rounded up to a multiple of it; 0 for one row a token (or as many as there
        were, if the tokens are the same). Rows beyond the tokens are old ones of that kind, then the mean of all rows.
      seed: of methods that draw.

    Returns:
      A model with another ``vocab_size`` and no ``origin`` (its folder has the old tokenizer), and its parameters: new
      arrays for embeddings, head and bias in their old dtypes, the others as they were.

    Raises:
      ConfigError: in one line: tokenizers whose bytes are not known or not complete, ids that the model lacks, an
        unknown method or one without the vectors it needs, and models that know token ids by other ways.
    """
    shared = _checked(model, source, target, pad_to_multiple)
    same = target.vocab_size == source.vocab_size and bool((shared == np.arange(len(shared))).all())
    rows = model.spec.vocab_size if same and not pad_to_multiple else _padded(target.vocab_size, pad_to_multiple)
    return _rebuilt(model, params, source, target, shared, rows, init, auxiliary, texts, seed)


def extend_vocabulary(
    model: LanguageModel,
    params: Params,
    source: Tokenizer,
    target: Tokenizer,
    init: Any = "mean_of_pieces",
    *,
    auxiliary: Auxiliary | None = None,
    texts: Iterable[str | bytes] = (),
    pad_to_multiple: int = 0,
    seed: int = 0,
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model for a larger tokenizer whose first ids are those of the old one: only rows behind them are new.
    `jaxlm.tokenize.extend` makes such tokenizers of byte pair encoding.

    The logits of old ids stay what they were, on text without new ones. The new rows alone are trained by passing each
    update through `new_rows_only` with ``first=source.vocab_size``. Arguments as in `swap_vocabulary`; the table never
    gets shorter.

    Raises `ConfigError` as that does, and for a tokenizer that does not keep the old ids.
    """
    shared = _checked(model, source, target, pad_to_multiple)
    size = source.vocab_size
    require(
        target.vocab_size >= size,
        f"the new tokenizer has {target.vocab_size} ids, the old one {size}; it is no extension",
    )
    moved = np.flatnonzero(shared[:size] != np.arange(size))
    if len(moved):
        i = int(moved[0])
        raise ConfigError(
            f"the new tokenizer does not keep the old ids: {i} was {source.token_bytes[i]!r} and is "
            f"{target.token_bytes[i]!r}; swap the vocabulary, or append the new tokens behind id {size - 1}"
        )
    rows = max(model.spec.vocab_size, _padded(target.vocab_size, pad_to_multiple))
    return _rebuilt(model, params, source, target, shared, rows, init, auxiliary, texts, seed)


def new_rows_only(updates: Tree, first: int) -> dict[str, Any]:
    """``updates`` of parameters (or gradients) with zeros everywhere but in the rows of token ids from ``first`` on.

    Of updates rather than gradients it also keeps weight decay and momentum from the old rows. Works under ``jit``.
    """

    def kept(path: str, leaf: Any) -> jax.Array:
        if path not in ROWS:
            return jnp.zeros_like(leaf)
        new = jnp.arange(leaf.shape[ROWS[path]]) >= first
        return jnp.where(jnp.expand_dims(new, 1 - ROWS[path]) if leaf.ndim == 2 else new, leaf, 0)

    return map_specs(kept, updates)


def auxiliary_vectors(
    init: Any,
    source: Tokenizer,
    target: Tokenizer,
    *,
    texts: Iterable[str | bytes] = (),
    vectors: str = "",
    dim: int = 64,
    seed: int = 0,
) -> Auxiliary:
    """What a method needs of auxiliary vectors, from texts or from a file.

    Args:
      init: the method.
      texts: in the language of ``target``; nothing else is needed. Of target tokens alone they give vectors of those
        by the tokens around them; of both tokenizers', by the words that the tokens are part of.
      vectors: a file in place of vectors made of the texts: .npz with ``target`` [T, A] and ``source`` [V, A] (rows by
        token id), or words with their vectors in fastText's text form, which become tokens' by ``texts``, or, without
        texts, each word counting once.
      dim: width of vectors that are made here.

    Raises `ConfigError` where the method needs vectors and there is nothing to have them from, and for damaged files.
    """
    method = make("embedding_init", init, where="init")
    if not (method.needs_target or method.needs_source):
        return Auxiliary()
    if vectors and Path(vectors).suffix == ".npz":
        rows = read_rows(vectors, {"target": target.vocab_size, "source": source.vocab_size})
        return Auxiliary(rows.get("target"), rows.get("source"))
    texts = list(texts)
    if vectors:
        words = read_words(vectors)
        counts = words_of(texts) or {form: 1 for word in words for form in (word, b" " + word)}
        width = len(next(iter(words.values()), ()))
        return Auxiliary(spread(target, words, counts, width), spread(source, words, counts, width))
    require(
        texts, f"{type(method).__name__} needs auxiliary vectors: give texts to make them from, or a file of vectors"
    )
    if not method.needs_source:
        return Auxiliary(static_vectors(target, texts, dim, seed=seed))
    return Auxiliary(*subword_vectors((target, source), texts, dim, seed=seed))


def _checked(model: LanguageModel, source: Tokenizer, target: Tokenizer, multiple: int) -> Ids:
    """The overlap, after everything that can be wrong with the model and its tokenizers."""
    spec = model.spec
    require(multiple >= 0, f"pad_to_multiple: expected 0 (none) or more, got {multiple}")
    require(
        spec.edit is None, "the model's sequence edit has tokens of its own in the vocabulary, which is not changed"
    )
    for name, (encoding, _) in decoder.position_encodings(spec).items():
        require(not encoding.reads_tokens, f"position {name!r} knows token ids, which would mean other tokens")
    check_vocabulary(source, spec.vocab_size)
    check_complete(target)
    return overlap(source, target)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple if multiple else size


def _rebuilt(
    model: LanguageModel,
    params: Params,
    source: Tokenizer,
    target: Tokenizer,
    shared: Ids,
    rows: int,
    init: Any,
    auxiliary: Auxiliary | None,
    texts: Iterable[str | bytes],
    seed: int,
) -> tuple[LanguageModel, dict[str, Any]]:
    method: EmbeddingInit = make("embedding_init", init, where="init")
    new = np.flatnonzero(shared < 0)
    pieces: list[list[int]] = [[] for _ in shared]
    if method.needs_pieces:
        for i, found in zip(new, pieces_of(source, [target.token_bytes[i] for i in new]), strict=True):
            pieces[i] = found
    if auxiliary is None and len(new):
        auxiliary = auxiliary_vectors(method, source, target, texts=texts, seed=seed)
    count, size = model.spec.vocab_size, source.vocab_size
    vectors = None if auxiliary is None or auxiliary.source is None else auxiliary.source
    if vectors is not None and len(vectors) == size:
        vectors = np.concatenate([vectors, np.zeros((count - size, vectors.shape[1]))])
    regular = np.zeros(count, np.bool_)
    regular[[i for i, piece in enumerate(source.token_bytes) if piece]] = True
    spec = dataclasses.replace(model.spec, vocab_size=rows)
    specs = decoder.param_specs(spec)
    out = {
        name: dict(value) if name in specs and name in ("embed", "head") else value for name, value in params.items()
    }
    for number, (path, axis) in enumerate(ROWS.items()):
        part, name = path.split("/")
        if name not in specs.get(part, {}):
            continue
        old = np.asarray(jax.device_get(params[part][name]))
        by_row = old[:, None] if old.ndim == 1 else np.moveaxis(old, axis, 0)
        require(len(by_row) == count, f"parameter {path} has {len(by_row)} rows, the model {count} tokens")
        material = Material(
            by_row, shared, pieces, None if auxiliary is None else auxiliary.target, vectors, regular=regular
        )
        made = method(material, np.random.default_rng([seed, number])) if len(new) else by_row[shared]
        spare = by_row[size : size + max(rows - len(made), 0)]
        mean = np.broadcast_to(material.mean().astype(old.dtype), (rows - len(made) - len(spare), by_row.shape[1]))
        whole = np.concatenate([made, spare, mean])
        out[part][name] = jnp.asarray(whole[:, 0] if old.ndim == 1 else np.moveaxis(whole, 0, axis))
    return LanguageModel(spec), out
