"""The contract of a sequence edit: what lies between the tokens that a caller gives and those that the layers see.

`insert` adds tokens and `strip` takes their outputs out again, so whoever calls the model (an objective, an evaluation,
a decode loop) deals in the text's own tokens, labels and lengths and needs not know. What a call inserts follows from
how many tokens of the row came before, which the model's state counts: a full pass, pieces and single steps edit alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Edited:
    """A piece of a row after `SequenceEdit.insert`.

    Attributes:
      tokens: int32 [B, E].
      positions: int32 [B or 1, E], or None where none were given.
      segment_ids: int32 [B, E], 0 where there is nothing; None for one document per row without padding.
      places: int32 [B or 1, L], where each given token went, rising.
      count: int32 [B], the text's tokens so far; None if the row is whole.
    """

    tokens: jax.Array
    positions: jax.Array | None
    segment_ids: jax.Array | None
    places: jax.Array
    count: jax.Array | None


class SequenceEdit(Spec):
    """Base of all sequence edits."""

    paper: str = ""

    def check_model(self, vocab_size: int, mixers: Sequence[Any]) -> None:
        """Raises `ConfigError` for a model that it does not fit."""

    def marks(self, vocab_size: int) -> tuple[int, ...]:
        """The tokens that only the edit writes, which no text holds."""
        return ()

    def length(self, text: int) -> int:
        """How many tokens ``text`` tokens become."""
        raise NotImplementedError

    def text(self, length: int) -> int:
        """The most tokens that become at most ``length``."""
        raise NotImplementedError

    def slots(self, text: int) -> int:
        """The most slots that ``text`` tokens take that come in pieces of any size, padding between them included."""
        raise NotImplementedError

    def insert(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        segment_ids: jax.Array | None,
        count: jax.Array | None,
        vocab_size: int,
    ) -> Edited:
        """The next L tokens of each row, [B, L], with those of the edit between them.

        Args:
          tokens: int32 [B, L].
          positions: int32 [B or 1, L], or None for plain ones.
          segment_ids: int32 [B, L], 0 for padding; None for one document per row.
          count: int32 [B], how many tokens of the text came before, padding left out; None if the row begins here and
            ends here.
          vocab_size: of the model.
        """
        raise NotImplementedError

    def strip(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """Of what the layers made of the edited tokens, [B, E, D], that of the given ones, [B, L, D]."""
        places = jnp.broadcast_to(places, (x.shape[0], places.shape[1]))
        return jnp.take_along_axis(x, places[..., None], 1)
