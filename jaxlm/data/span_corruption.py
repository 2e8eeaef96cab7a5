"""Span corruption: some spans of a text are replaced by sentinels, and the target says what stood there.

Paper: Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (T5,
section 3.1.4). With sentinels s_0, s_1, ... counting down from a first id,

    input   x x s_0 x x x s_1 x <end>          target   s_0 y y s_1 y (s_2) <end>

Of L tokens n = round(density L) are noise, in m = round(n / mean length) spans; n and L - n are each cut into m parts,
all ways of cutting equally likely, and the parts alternate, kept ones first. So the sizes of input and target depend on
L alone, and shapes are fixed. ByT5 (Xue et al. 2022) has spans of 20 bytes and takes as sentinels its last byte ids,
258 downwards; the first are bytes that no UTF-8 has. In this library's byte tokenizer, where byte b is id b, these are
255 downwards.

Here it is data: pairs for an encoder-decoder, in numpy. For a decoder alone the objective ``span_corruption`` does it
to packed rows inside the compiled step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import Spec, require

T5_SENTINEL, BYT5_SENTINEL = 32099, 258  # the first ids of the released models


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Spec):
    """How tokens are corrupted.

    Attributes:
      sentinel: the first id; that of span k is ``sentinel - k``. What they mean must not occur in the text.
      end: the id that ends input and target.
      density: the share of tokens that are noise.
      mean_length: of the spans, in tokens.
      closing: whether the target has one more sentinel before its end, as a mark that no span follows (T5's data has it
        in some versions).
    """

    paper: ClassVar[str] = "Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Transformer"

    sentinel: int = T5_SENTINEL
    end: int = 1
    density: float = 0.15
    mean_length: float = 3.0
    closing: bool = False

    def check(self) -> None:
        require(0 < self.density < 1, f"SpanCorruption.density: expected a share in (0, 1), got {self.density}")
        require(self.mean_length >= 1, f"SpanCorruption.mean_length: expected at least 1, got {self.mean_length}")
        require(self.end >= 0, f"SpanCorruption.end: expected a token id, got {self.end}")
        require(self.sentinel >= 0, f"SpanCorruption.sentinel: expected a token id, got {self.sentinel}")

    def counts(self, length: int) -> tuple[int, int]:
        """(noise tokens, spans) of a text of ``length`` tokens. Raises `ConfigError` if it is shorter than 2."""
        require(length >= 2, f"SpanCorruption: a text of {length} tokens has no room for noise; expected at least 2")
        noise = min(max(round(length * self.density), 1), length - 1)
        return noise, min(max(round(noise / self.mean_length), 1), noise, length - noise)

    def sizes(self, length: int) -> tuple[int, int]:
        """The tokens of input and target of a text of ``length``. Raises `ConfigError` if sentinels run out of ids."""
        noise, spans = self.counts(length)
        last = self.sentinel - spans - self.closing + 1
        require(last >= 0, f"SpanCorruption.sentinel: {spans} spans in {length} tokens count down to {last}")
        return length - noise + spans + 1, noise + spans + self.closing + 1

    def spans(self, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Where the noise is, int64 [m, 2]: tokens start..stop - 1."""
        noise, spans = self.counts(length)
        kept, dropped = (_cut(total, spans, rng) for total in (length - noise, noise))
        stops = np.cumsum(kept + dropped)
        return np.stack([stops - dropped, stops], axis=1)

    def corrupt(self, tokens: ArrayLike, spans: Iterable[ArrayLike]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(input, target) of tokens [n] and spans in order, none empty, none overlapping (neighbours may touch).

        Raises `ConfigError` for spans that are not so.
        """
        ids, before = np.asarray(tokens, np.int32), 0
        source, target, k = [], [], 0
        for k, (start, stop) in enumerate(np.asarray(list(spans), np.int64).reshape(-1, 2).tolist()):
            fits = before <= start < stop <= len(ids)
            require(fits, f"SpanCorruption: span [{start}, {stop}) does not follow {before} within {len(ids)} tokens")
            mark = np.array([self.sentinel - k], np.int32)
            source += [ids[before:start], mark]
            target += [mark, ids[start:stop]]
            before, k = stop, k + 1
        end = np.array([self.end], np.int32)
        closing = np.array([self.sentinel - k] if self.closing else [], np.int32)
        return np.concatenate([*source, ids[before:], end]), np.concatenate([*target, closing, end])

    def pair(self, tokens: ArrayLike, seed: int, *index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(input, target) of a text, a function of (seed, index)."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *index])))
        ids = np.asarray(tokens)
        self.sizes(len(ids))
        return self.corrupt(ids, self.spans(len(ids), rng))


def _cut(total: int, parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The sizes of ``parts`` non-empty parts of ``total``, all compositions equally likely."""
    at = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], at, [total]]))
