"""Token models as byte-level views see them: how likely each token is to come next, after any sequences at all."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec

Ids = tuple[int, ...]
SHORTEST = 16  # the smallest length that is compiled
_AT_ONCE = 2**24  # log-probabilities made by one call


class TokenModel(Protocol):
    """Anything that says how likely tokens are: a language model, a Markov chain, a table of counts.

    A model may have ``totals(sequences, starts)`` as `FullPass` has it; otherwise its single answers are summed.

    Attributes:
      context: how many last tokens decide; None if all do. Sequences that agree in them are the same to it.
    """

    context: int | None

    def __call__(self, sequences: Sequence[Ids]) -> NDArray[np.floating]:
        """Natural logarithms of the probability of each next token, [n, V or more], one row a sequence of token ids."""
        ...


class FullPass:
    """A `LanguageModel` as a token model, by passes over whole sequences; those that begin others share theirs."""

    context: int | None = None

    def __init__(self, model: LanguageModel, params: Params) -> None:
        self._spec, self._params = model.spec, params
        self._most = decoder.max_positions(model.spec)

    def __call__(self, sequences: Sequence[Ids]) -> NDArray[np.floating]:
        """float64 [n, V]. Raises `ConfigError` for an empty sequence, or one the model has no positions for."""
        out = np.zeros((len(sequences), self._spec.vocab_size))
        for tokens, lengths, places in self._batches(sequences):
            where = np.zeros((bucket(len(places)), 2), np.int32)
            where[: len(places)] = [(b, len(sequences[i]) - 1) for b, i in places]
            found = np.asarray(_next(self._spec, self._params, tokens, lengths, where), np.float64)
            out[[i for _, i in places]] = found[: len(places)]
        return out

    def totals(self, sequences: Sequence[Ids], starts: Sequence[int]) -> NDArray[np.floating]:
        """Log-probability, float64 [n], of each sequence's tokens from its start on, given those before."""
        out = np.zeros(len(sequences))
        for tokens, lengths, places in self._batches([one[:-1] or one for one in sequences]):
            targets = np.zeros((bucket(len(places), 1), tokens.shape[1]), np.int32)
            rows = np.zeros(len(targets), np.int32)
            for n, (b, i) in enumerate(places):
                targets[n, : len(sequences[i]) - 1], rows[n] = sequences[i][1:], b
            found = np.asarray(_own(self._spec, self._params, tokens, lengths, rows, targets), np.float64)
            for n, (_, i) in enumerate(places):
                out[i] = found[n, max(starts[i], 1) - 1 : len(sequences[i]) - 1].sum()
        return out

    def _check(self, sequences: Sequence[Ids]) -> int:
        """The length of the longest, after what can be wrong with sequences."""
        require(all(sequences), "the model says nothing about a first token: give prompts a BOS, or other ids, as head")
        longest = max(map(len, sequences))
        require(
            self._most is None or longest <= self._most,
            f"a text of {longest} tokens: the model's position encoding can represent {self._most}",
        )
        return longest

    def _batches(self, sequences: Sequence[Ids]) -> Iterator[tuple[NDArray, NDArray, list[tuple[int, int]]]]:
        """Tokens [B, L], lengths [B], and (row, number) of the sequences that each row is or begins with."""
        longest = self._check(sequences)
        room = max(1, _AT_ONCE // (self._spec.vocab_size * bucket(longest)))
        bundles: list[list[int]] = []  # each the places of sequences that begin its first one
        for i in sorted(range(len(sequences)), key=lambda i: sequences[i], reverse=True):
            if bundles and len(bundles[-1]) < 64 and sequences[bundles[-1][0]][: len(sequences[i])] == sequences[i]:
                bundles[-1].append(i)
            else:
                bundles.append([i])
        for start in range(0, len(bundles), room):
            some = bundles[start : start + room]
            size = bucket(max(len(sequences[bundle[0]]) for bundle in some))
            size = size if self._most is None else min(size, self._most)
            tokens = np.zeros((bucket(len(some), 1), size), np.int32)
            lengths = np.zeros(len(tokens), np.int32)
            for b, bundle in enumerate(some):
                first = sequences[bundle[0]]
                tokens[b, : len(first)], lengths[b] = first, len(first)
            yield tokens, lengths, [(b, i) for b, bundle in enumerate(some) for i in bundle]


@functools.partial(jax.jit, static_argnums=0)
def _next(
    spec: ModelSpec, params: Params, tokens_BL: jax.Array, lengths_B: jax.Array, where_N2: jax.Array
) -> jax.Array:
    """Log-probabilities [N, V] behind the tokens at (row, place)."""
    hidden = _hidden(spec, params, tokens_BL, lengths_B)[where_N2[:, 0], where_N2[:, 1]]
    return jax.nn.log_softmax(decoder.unembed(spec, params, hidden))


@functools.partial(jax.jit, static_argnums=0)
def _own(
    spec: ModelSpec,
    params: Params,
    tokens_BL: jax.Array,
    lengths_B: jax.Array,
    rows_N: jax.Array,
    targets_NL: jax.Array,
) -> jax.Array:
    """Log-probabilities [N, L] of given next tokens."""
    hidden = _hidden(spec, params, tokens_BL, lengths_B)

    def one(column: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_BD, targets_N = column
        logs = jax.nn.log_softmax(decoder.unembed(spec, params, hidden_BD))
        return logs[rows_N, targets_N]

    return jax.lax.map(one, (hidden.swapaxes(0, 1), targets_NL.T)).T


def _hidden(spec: ModelSpec, params: Params, tokens_BL: jax.Array, lengths_B: jax.Array) -> jax.Array:
    real = jnp.arange(tokens_BL.shape[1]) < lengths_B[:, None]
    return decoder.forward(spec, params, tokens_BL, segment_ids=real.astype(jnp.int32), logits=False).hidden


def bucket(size: int, least: int = SHORTEST) -> int:
    """A power of two that holds ``size``, so that few lengths are compiled."""
    return max(least, 1 << max(size - 1, 0).bit_length())
