"""Abacus: digits know their place in their number: x_i += table[u + r_i], r_i the index from 1 within a run of digits.

Tokens that are no digits read table[0]. With numbers written least significant digit first, digits of equal weight
share an embedding, in both operands and the answer. In training u is drawn from 0..max_offset for each row, so that
rows of the table beyond the trained lengths are seen; else it is 0. A run goes on across padding and pieces and ends
with its document.

Learned: the table, once in the model. Claimed: addition to 100 digits from 20, with looped layers (McLeish et al.
2024). Order is told to attention by another encoding, or by the causal mask alone. Shown by:
experiments.length_generalization.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import require, slot
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import Normal, ParamSpec
from jaxlm.core.types import Dims, Params, Specs
from jaxlm.ops.segments import previous_segment
from jaxlm.position.base import Wrapper

Carried = dict[str, jax.Array]


def runs(tokens: jax.Array, segment_ids: jax.Array, digits: tuple[int, ...], carried: Carried) -> jax.Array:
    """The index from 1 of each token within its run of ``digits``, int32 [B, L]; 0 for other tokens and padding.

    Args:
      tokens: int32 [B, L].
      segment_ids: int32 [B, L], 0 for padding, which is skipped; a run stays within a segment.
      digits: token ids.
      carried: ``run``, int32 [B], the index of the last real token before these, and ``segment`` [B], its segment.
    """
    real = segment_ids != 0
    digit = real & (tokens[..., None] == jnp.asarray(digits, jnp.int32)).any(-1)
    rank = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    # The rank before that of a run's first digit: of the token that is no digit, or of the last document's last one.
    anew = real & (segment_ids != previous_segment(segment_ids, carried["segment"]))
    before = jnp.where(real & ~digit, rank, jnp.where(anew, rank - 1, -2))
    before = jax.lax.cummax(before, axis=1)
    index = jnp.where(before > -2, rank - before, rank + 1 + carried["run"][:, None])
    return jnp.where(digit, index, 0)


@dataclasses.dataclass(frozen=True)
class Abacus(Wrapper):
    """Embeddings of places within numbers.

    Attributes:
      inner: the encoding that tells order; its parameters are then shared by all layers.
      digit_ids: the token ids of digits; by default those of this library's arithmetic tasks.
      size: rows of the table; a run that goes beyond, its offset counted, reads NaN.
      max_offset: the greatest offset in training.
      std: of the normal initial values.
    """

    paper: ClassVar[str] = "McLeish et al. 2024, Transformers Can Do Arithmetic with the Right Embeddings"

    inner: Any = slot("position", "none")
    digit_ids: tuple[int, ...] = tuple(range(4, 14))
    size: int = 1024
    max_offset: int = 99
    std: float = 0.02

    @property
    def scope(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "model"

    @property
    def reads_tokens(self) -> bool:
        return True

    def check(self) -> None:
        require(self.digit_ids, "Abacus.digit_ids: expected at least one token id")
        require(not self.inner.reads_tokens, "Abacus.inner: expected an encoding that does not read tokens")
        require(
            0 <= self.max_offset < self.size - 1,
            f"Abacus.max_offset: allowed 0..{self.size - 2} for a table of {self.size}, got {self.max_offset}",
        )

    def params(self, dims: Dims) -> Specs:
        table = ParamSpec((self.size, dims.width), (None, "embed"), Normal(self.std))
        return {"digits": table, **self.inner.params(dims)}

    def start(self, batch: int) -> Carried:
        return {name: jnp.zeros((batch,), jnp.int32) for name in ("run", "segment")}

    def embed_tokens(
        self,
        p: Params,
        tokens: jax.Array,
        segment_ids: jax.Array | None,
        carried: Carried | None,
        width: int,
        train: bool,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Carried]:
        """Rows of the table; an index outside it reads NaN. Raises `ConfigError` if training has no key."""
        carried = self.start(tokens.shape[0]) if carried is None else carried
        segments = jnp.ones(tokens.shape, jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)
        found = index = runs(tokens, segments, self.digit_ids, carried)
        if train and self.max_offset:
            if key is None:
                raise ConfigError("position 'abacus' draws offsets in training: pass rngs={'dropout': key}")
            offset = jax.random.randint(key, (tokens.shape[0], 1), 0, self.max_offset + 1)
            index = jnp.where(found > 0, found + offset, 0)
        added = p["digits"].at[index].get(mode="fill", fill_value=jnp.nan).astype(jnp.float32)
        last = jnp.where(segments != 0, jnp.arange(tokens.shape[1]), -1).max(1)
        rows = jnp.arange(tokens.shape[0])
        return added, {
            "run": jnp.where(last >= 0, found[rows, last], carried["run"]),
            "segment": jnp.where(last >= 0, segments[rows, last], carried["segment"]),
        }
