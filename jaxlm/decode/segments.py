"""Long contexts as their most telling segments: each is read alone with the question, and the surest ones are kept.

Wang et al. 2024, XL3M: A Training-free Framework for LLM Length Extension Based on Segment-wise Inference. The context
is cut into overlapping segments; the model reads each with the question after it, and the entropy of its next-token
distribution says how little the segment tells. Those of least entropy that fit the window are joined in the order of
the text. Learned: nothing. Claimed: contexts of 20M tokens on eight accelerators, with a model of 7B. A context that
fits is kept whole.

    prompt = condense(model, params, context, question, window=2048, size=512, overlap=64)
    answer = jaxlm.generate(model, params, prompt[None], 20)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.types import Params
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec

Span = tuple[int, int]  # of tokens, the last left out


def split(length: int, size: int, overlap: int = 0) -> list[Span]:
    """Spans of ``size`` tokens that cover ``length`` of them, neighbours sharing ``overlap`` or, at the end, more.

    Raises `ConfigError` for an overlap of whole segments.
    """
    require(0 <= overlap < size, f"overlap: expected 0 to {size - 1} tokens of segments of {size}, got {overlap}")
    starts = list(range(0, max(length - size, 0), size - overlap))
    return [(start, start + size) for start in starts] + [(max(length - size, 0), length)]


def entropy(logits: jax.Array) -> jax.Array:
    """float32 [...], in nats, of the distributions of logits [..., V]."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0), -1)


def choose(spans: Sequence[Span], scores: Sequence[float] | np.ndarray, room: int) -> np.ndarray:
    """The places of the tokens to keep, rising int [n <= room]: of the spans of least score, while the next one fits.

    What spans share is kept, and counted, once.
    """
    kept = np.zeros(0, int)
    for i in np.argsort(np.asarray(scores), kind="stable"):
        wider = np.union1d(kept, np.arange(*spans[i]))
        if wider.size > room:
            break
        kept = wider
    return kept


def score(
    model: LanguageModel, params: Params, context: Any, question: Any, spans: Sequence[Span], batch: int = 8
) -> np.ndarray:
    """float32 [len(spans)]: the entropy of what comes after each span of the context with the question behind it.

    Args:
      model, params: the model.
      context, question: integers [T] and [Q].
      spans: of the context, of one length.
      batch: how many are read at a time.
    """
    rows = np.stack([np.concatenate((context[start:stop], question)) for start, stop in spans]).astype(np.int32)
    full = np.concatenate((rows, np.repeat(rows[-1:], -len(rows) % batch, axis=0)))
    parts = [_entropies(model.spec, params, full[i : i + batch]) for i in range(0, len(full), batch)]
    return np.concatenate(parts)[: len(rows)]


@functools.partial(jax.jit, static_argnums=0)
def _entropies(spec: ModelSpec, params: Params, tokens_BL: jax.Array) -> jax.Array:
    hidden = decoder.forward(spec, params, tokens_BL, logits=False).hidden[:, -1]
    return entropy(decoder.unembed(spec, params, hidden))


def condense(
    model: LanguageModel,
    params: Params,
    context: Any,
    question: Any,
    *,
    window: int,
    size: int,
    overlap: int = 0,
    batch: int = 8,
) -> np.ndarray:
    """A prompt of at most ``window`` tokens, int32: the segments that answer the question best, and the question.

    Args:
      model, params: the model.
      context, question: integers [T] and [Q].
      window: tokens of the prompt, with room for what is to be generated left to the caller.
      size, overlap: of the segments; with the question one must fit the window.
      batch: how many segments are read at a time.

    Raises:
      ConfigError: tokens that are not integers [n], no question, or a window in which no segment fits.
    """
    context, question = (_checked(name, x) for name, x in (("context", context), ("question", question)))
    require(question.size, "question: expected one token or more")
    room = window - question.size
    require(
        0 < size <= room,
        f"size: a segment of {size} tokens and a question of {question.size} do not fit a window of {window}",
    )
    spans = split(context.size, size, overlap)
    if context.size > room:
        context = context[choose(spans, score(model, params, context, question, spans, batch), room)]
    return np.concatenate((context, question)).astype(np.int32)


def _checked(name: str, tokens: Any) -> np.ndarray:
    array = np.asarray(tokens)
    require(
        array.ndim == 1 and (array.dtype.kind in "iu" or not array.size),
        f"{name}: expected integers [n], got {array.dtype} {list(array.shape)}",
    )
    return array
