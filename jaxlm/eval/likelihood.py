"""Log-likelihoods of the ends of token rows: what multiple choice, perplexity and word prediction are made of.

Rows are sorted by length and padded to powers of two, and every batch has the same number of rows, so a handful of
shapes is compiled whatever the data. Logits are made of the scored tokens alone, a piece at a time: there is never an
array [B, L, V]. A row's result does not depend on what else is in the batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec

SHORTEST = 16  # the smallest length that is compiled
PIECE = 2**24  # logits alive at once


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of the n scored tokens of a row: log-probability, float32 [n], and whether each was the likeliest, bool [n]."""

    logprobs: NDArray[np.float32]
    greedy: NDArray[np.bool_]

    @property
    def total(self) -> float:
        """The log-likelihood of all of them."""
        return float(self.logprobs.sum(dtype=np.float64))


def loglikelihoods(
    model: LanguageModel,
    params: Params,
    rows: Sequence[ArrayLike],
    counts: Sequence[int],
    *,
    batch_size: int = 8,
    piece: int = PIECE,
) -> list[Scores]:
    """Scores of the last ``counts[i]`` tokens of ``rows[i]``, each given all tokens of the row before it.

    Args:
      model, params: the model.
      rows: integers [n_i]; the first token of a row is only read, so ``counts[i] < n_i``.
      counts: how many tokens at the end of each row are scored; none for 0.
      batch_size: rows run together.
      piece: at most about this many logits are held at once.

    Raises `ConfigError` for tokens outside the vocabulary, a count that does not fit its row, or a row longer than the
    model's position encoding can represent (its last token is not fed).
    """
    arrays = [np.asarray(row) for row in rows]
    _check(model.spec, arrays, counts, batch_size)
    most = decoder.max_positions(model.spec)
    shapes = [
        (bucket(len(row) - 1, most), bucket(count, bucket(len(row) - 1, most), 1)) if count else None
        for row, count in zip(arrays, counts, strict=True)
    ]
    out = [Scores(np.zeros(0, np.float32), np.zeros(0, bool))] * len(arrays)
    for shape in sorted({shape for shape in shapes if shape is not None}, reverse=True):
        members = [i for i, other in enumerate(shapes) if other == shape]
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            some, ends = [arrays[i] for i in batch], [counts[i] for i in batch]
            logprobs, greedy = _run(model.spec, params, some, ends, shape, batch_size, piece)
            for b, i in enumerate(batch):
                out[i] = Scores(logprobs[b, : counts[i]], greedy[b, : counts[i]])
    return out


def rolling_windows(tokens: Sequence[int], prefix: int, max_length: int) -> Iterator[tuple[list[int], int]]:
    """Cuts a long text into (row, count) for `loglikelihoods`, so that each token is scored once.

    The first token is read after ``prefix``. A window feeds at most ``max_length`` tokens, and the last one reaches
    back so as to be full (lm-evaluation-harness, `get_rolling_token_windows` with a context of one).
    """
    row = [prefix, *tokens]
    for start in range(1, len(row), max_length):
        stop = min(start + max_length, len(row))
        yield row[max(0, stop - max_length - 1) : stop], stop - start


def bucket(size: int, most: int | None, least: int = SHORTEST) -> int:
    """The length that ``size`` tokens are padded to: the next power of two, at most ``most``."""
    power = max(least, 1 << (size - 1).bit_length())
    return power if most is None else min(power, most)


def _run(
    spec: ModelSpec,
    params: Params,
    rows: Sequence[NDArray],
    counts: Sequence[int],
    shape: tuple[int, int],
    batch_size: int,
    piece: int,
) -> tuple[NDArray, NDArray]:
    """Log-probabilities and greediness [B, K] of rows padded to the shape: L tokens fed, K scored."""
    length, scored = shape
    tokens = np.zeros((batch_size, length), np.int32)
    lengths = np.zeros(batch_size, np.int32)
    places = np.zeros((batch_size, scored), np.int32)
    targets = np.zeros((batch_size, scored), np.int32)
    for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
        lengths[b] = len(row) - 1
        tokens[b, : lengths[b]] = row[:-1]
        places[b, :count] = np.arange(lengths[b] - count, lengths[b])
        targets[b, :count] = row[-count:]
    columns = max(1, piece // (batch_size * spec.vocab_size))
    logprobs, greedy = _score(spec, min(scored, columns), params, tokens, lengths, places, targets)
    return np.asarray(logprobs), np.asarray(greedy)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    spec: ModelSpec,
    columns: int,
    params: Params,
    tokens_BL: jax.Array,
    lengths_B: jax.Array,
    places_BK: jax.Array,
    targets_BK: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    real = jnp.arange(tokens_BL.shape[1]) < lengths_B[:, None]
    hidden = decoder.forward(spec, params, tokens_BL, segment_ids=real.astype(jnp.int32), logits=False).hidden

    def one(column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        place_B, target_B = column
        logits_BV = decoder.unembed(spec, params, hidden[jnp.arange(len(place_B)), place_B])
        hit = jnp.take_along_axis(logits_BV, target_B[:, None], axis=-1)[:, 0]
        return hit - jax.nn.logsumexp(logits_BV, axis=-1), jnp.argmax(logits_BV, axis=-1) == target_B

    logprobs, greedy = jax.lax.map(one, (places_BK.T, targets_BK.T), batch_size=columns)
    return logprobs.T, greedy.T


def _check(spec: ModelSpec, rows: Sequence[NDArray], counts: Sequence[int], batch_size: int) -> None:
    require(batch_size >= 1, f"batch_size: expected at least 1, got {batch_size}")
    require(len(rows) == len(counts), f"{len(rows)} rows and {len(counts)} counts")
    most = decoder.max_positions(spec)
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        good = row.ndim == 1 and (row.dtype.kind in "iu" or not row.size)
        require(good, f"row {i}: expected integers of shape [n], got {row.dtype} {list(row.shape)}")
        odd = row[(row < 0) | (row >= spec.vocab_size)]
        require(not odd.size, f"row {i}: token {odd[:1]} is outside the vocabulary of {spec.vocab_size}")
        fits = 0 <= count < max(len(row), 1)
        require(fits, f"row {i}: {count} of its {len(row)} tokens cannot be scored; the first is only read")
        short = most is None or len(row) - 1 <= most
        require(short, f"row {i}: {len(row) - 1} tokens are fed; the model's position encoding can represent {most}")
