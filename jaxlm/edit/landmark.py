"""Landmark tokens (Mohtashami and Jaggi 2023, Landmark Attention, section 3.1): after every P - 1 tokens, a landmark.

The landmark is a token of the vocabulary that no text holds; it belongs to the document of the token before it.
Positions that are given are moved up by one for each landmark before them in the row, so that distances count landmarks
as they do where positions are plain. Landmarks are counted over the tokens of a row that are not padding, as the mixer
`jaxlm.mixer.landmark` counts its blocks, so every block ends in one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.edit.base import Edited, SequenceEdit


@dataclasses.dataclass(frozen=True)
class LandmarkTokens(SequenceEdit):
    """Every ``period``-th token is a landmark.

    Attributes:
      period: P, tokens of a block, its landmark included; that of the model's landmark mixers.
      token: the landmark's id; negative counts from the end of the vocabulary.
    """

    paper: ClassVar[str] = "Mohtashami and Jaggi 2023, Landmark Attention: Random-Access Infinite Context Length"

    period: int = 64
    token: int = -1

    def check(self) -> None:
        require(self.period >= 2, f"LandmarkTokens.period: expected 2 or more, got {self.period}")

    def check_model(self, vocab_size: int, mixers: Sequence[Any]) -> None:
        require(
            -vocab_size <= self.token < vocab_size,
            f"LandmarkTokens.token: {self.token} is outside the vocabulary of {vocab_size}",
        )
        for mixer in mixers:
            other = getattr(mixer, "period", self.period)
            require(
                other == self.period, f"a mixer's landmarks have period {other}, but the model inserts {self.period}"
            )

    def marks(self, vocab_size: int) -> tuple[int, ...]:
        return (self.token % vocab_size,)

    def length(self, text: int) -> int:
        return text + text // (self.period - 1)

    def text(self, length: int) -> int:
        return length - (length + 1) // self.period

    def slots(self, text: int) -> int:
        return 2 * text  # a single step has a slot for a landmark, due or not

    def insert(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        segment_ids: jax.Array | None,
        count: jax.Array | None,
        vocab_size: int,
    ) -> Edited:
        (batch, length), run = tokens.shape, self.period - 1
        (mark,) = self.marks(vocab_size)
        if count is None and segment_ids is None:  # the same in every row
            real, start = jnp.ones((1, length), bool), jnp.zeros((1,), jnp.int32)
        else:
            start = jnp.zeros((batch,), jnp.int32) if count is None else count
            segment_ids = jnp.ones((batch, length), jnp.int32) if segment_ids is None else segment_ids
            real = segment_ids != 0
        size = self.length(length) if count is None else length - (-length // run)
        upto = start[:, None] + jnp.cumsum(real, 1, dtype=jnp.int32)
        before = (upto - real) // run  # landmarks before each token, from the row's beginning
        places = jnp.arange(length) + before - start[:, None] // run
        marks = jnp.where(real & (upto % run == 0), places + 1, size)  # out of range where none is due

        def spread(given: jax.Array, marked: jax.Array | int, fill: int) -> jax.Array:
            rows = jnp.arange(max(given.shape[0], places.shape[0]))[:, None]
            new = jnp.full((len(rows), size), fill, given.dtype)
            return new.at[rows, places].set(given).at[rows, marks].set(marked, mode="drop")

        return Edited(
            tokens=spread(tokens, mark, 0),
            positions=None if positions is None else spread(positions + before, positions + before + 1, 0),
            segment_ids=None if segment_ids is None else spread(segment_ids, segment_ids, 0),
            places=places,
            count=None if count is None else upto[:, -1],
        )
