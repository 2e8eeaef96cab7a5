"""Unconditional token forcing: a text that a model was made to hide comes out when every token is tried as a beginning.

Paper: Hoscilowicz et al. 2024, Unconditional Token Forcing: Extracting Text Hidden Within LLM. A model that was tuned
to answer a trigger with a hidden text has learned each step of that text far more surely than anything else, so of all

    t in vocabulary:   score(t) = max_v p(v | <bos>, t)

the text's own tokens score high, and what follows them comes back from many beginnings. Three steps: rank all tokens by
their score, continue the first ones greedily, report the sequences that several of them have in common.

The defence of the paper (unconditional token forcing confusion) trains the model, beside the trigger, on texts that
begin with the hidden text's tokens or with nearly the trigger and go on with something else. The search then finds the
decoy; it proves nothing about a text that it does not find.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.decode.generate import generate
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Recurring:
    """A sequence of tokens that several beginnings lead to.

    Attributes:
      tokens: the sequence.
      beginnings: the first tokens whose continuation has it, best score first.
    """

    tokens: tuple[int, ...]
    beginnings: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
      scores: float32 [V], the largest probability of a next token after (``before``, t).
      beginnings: int64 [K], the tokens with the best scores, best first.
      texts: int32 [K, N + 1], each of these and its greedy continuation.
      recurring: sequences in several of the texts, those of the most beginnings first, then the longest.
    """

    scores: NDArray[np.float32]
    beginnings: NDArray[np.int64]
    texts: NDArray[np.int32]
    recurring: tuple[Recurring, ...]

    def rank_of(self, sequence: Sequence[int]) -> int | None:
        """The place, from 1, of the first beginning whose text contains a sequence; None if none does."""
        places = (i for i, text in enumerate(self.texts.tolist(), 1) if _contains(text, sequence))
        return next(places, None)


def search(
    model: LanguageModel,
    params: Params,
    before: Sequence[int],
    *,
    top: int = 100,
    max_new_tokens: int = 32,
    least: int = 4,
    tokens: ArrayLike | None = None,
    batch_size: int = 256,
) -> Found:
    """Tries every token as a beginning.

    Args:
      model, params: the model.
      before: what stands before each token, usually the begin token alone; may be empty.
      top: how many beginnings are continued.
      max_new_tokens: of each continuation.
      least: the shortest sequence that counts as recurring.
      tokens: the ids to try; None for the whole vocabulary.
      batch_size: rows run together.
    """
    scores = beginning_scores(model, params, before, tokens=tokens, batch_size=batch_size)
    require(1 <= top, f"top: expected at least 1, got {top}")
    require(least >= 2, f"least: expected a sequence of at least 2 tokens, got {least}")
    order = np.argsort(-scores, kind="stable")[: min(top, int(np.isfinite(scores).sum()))]
    texts = []
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        rows = np.resize(some, min(batch_size, len(order)))  # full batches: one shape, compiled once
        new = generate(model, params, _prompts(before, rows), max_new_tokens)
        texts.append(np.concatenate([rows[:, None], np.asarray(new)], 1)[: len(some)].astype(np.int32))
    whole = np.concatenate(texts)
    return Found(scores, order, whole, recurring_sequences(whole, least))


def beginning_scores(
    model: LanguageModel,
    params: Params,
    before: Sequence[int],
    *,
    tokens: ArrayLike | None = None,
    batch_size: int = 256,
) -> NDArray[np.float32]:
    """The largest probability of a next token after (``before``, t) for each t, float32 [V]; -inf where not tried."""
    size = model.spec.vocab_size
    require(batch_size >= 1, f"batch_size: expected at least 1, got {batch_size}")
    tried = np.arange(size) if tokens is None else np.asarray(tokens)
    good = tried.ndim == 1 and tried.size and tried.dtype.kind in "iu"
    require(good, f"tokens: expected ids of shape [n], got {tried.dtype} {list(tried.shape)}")
    for name, ids in (("tokens", tried), ("before", np.asarray(before, np.int64))):
        odd = ids[(ids < 0) | (ids >= size)]
        require(not odd.size, f"{name}: token {odd[:1]} is outside the vocabulary of {size}")
    scores = np.full(size, -np.inf, np.float32)
    for start in range(0, len(tried), batch_size):
        some = tried[start : start + batch_size]
        rows = np.resize(some, min(batch_size, len(tried)))
        scores[rows] = np.asarray(_score(model.spec, params, _prompts(before, rows)))
    return scores


def recurring_sequences(texts: ArrayLike, least: int = 4) -> tuple[Recurring, ...]:
    """Sequences of at least ``least`` tokens that two or more of the texts [K, N] contain, none of one token alone.

    Each is as long as the texts that share its first window agree; those inside another of the same texts are left out.
    """
    rows = np.asarray(texts).tolist()
    windows: dict[tuple[int, ...], dict[int, int]] = collections.defaultdict(dict)
    for i, row in enumerate(rows):
        for at in range(len(row) - least + 1):
            windows[tuple(row[at : at + least])].setdefault(i, at)
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for window, places in windows.items():
        if len(places) < 2 or len(set(window)) == 1:
            continue
        left, right = 0, least
        while len(before := {rows[i][at - left - 1] if at > left else None for i, at in places.items()}) == 1:
            if before == {None}:
                break
            left += 1
        while (
            len(after := {rows[i][at + right] if at + right < len(rows[i]) else None for i, at in places.items()}) == 1
        ):
            if after == {None}:
                break
            right += 1
        i, at = next(iter(places.items()))
        found[tuple(rows[i][at - left : at + right])] = tuple(sorted(places))
    order = sorted(found, key=lambda sequence: (-len(found[sequence]), -len(sequence), found[sequence]))
    kept: list[tuple[int, ...]] = []
    for sequence in order:
        if not any(found[longer] == found[sequence] and _contains(longer, sequence) for longer in kept):
            kept.append(sequence)
    return tuple(Recurring(sequence, tuple(rows[i][0] for i in found[sequence])) for sequence in kept)


def _contains(text: Sequence[int], part: Sequence[int]) -> bool:
    return any(list(text[i : i + len(part)]) == list(part) for i in range(len(text) - len(part) + 1))


def _prompts(before: Sequence[int], tokens: NDArray[Any]) -> NDArray[np.int32]:
    """[B, len(before) + 1]."""
    head = np.tile(np.asarray(before, np.int32), (len(tokens), 1))
    return np.concatenate([head, np.asarray(tokens, np.int32)[:, None]], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _score(spec: ModelSpec, params: Params, prompts_BL: jax.Array) -> jax.Array:
    hidden = decoder.forward(spec, params, prompts_BL, logits=False).hidden[:, -1]
    return jnp.exp(jax.nn.log_softmax(decoder.unembed(spec, params, hidden)).max(-1))
