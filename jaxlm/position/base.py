"""The base of encodings that wrap another: every hook is the inner one's until a wrapper says otherwise."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxlm.core.config import slot
from jaxlm.core.types import Dims, Mask, Params, PositionEncoding, RowBias, Side, Specs, TileBias


@dataclasses.dataclass(frozen=True)
class Wrapper(PositionEncoding):
    """An encoding made of another.

    Attributes:
      inner: the encoding that is wrapped.
    """

    inner: Any = slot("position", "rotary")

    @property
    def scope(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.scope

    @property
    def pre_rotate(self) -> bool:
        return self.inner.pre_rotate

    @property
    def by_length(self) -> bool:
        return self.inner.by_length

    def params(self, dims: Dims) -> Specs:
        return self.inner.params(dims)

    @property
    def reads_tokens(self) -> bool:
        return self.inner.reads_tokens

    def start(self, batch: int) -> Any:
        return self.inner.start(batch)

    def embed_tokens(
        self,
        p: Params,
        tokens: jax.Array,
        segment_ids: jax.Array | None,
        carried: Any,
        width: int,
        train: bool,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        return self.inner.embed_tokens(p, tokens, segment_ids, carried, width, train, key)

    def prepare(self, p: Params, dims: Dims) -> Params:
        return self.inner.prepare(p, dims)

    def max_positions(self) -> int | None:
        return self.inner.max_positions()

    def draw(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        return self.inner.draw(key, positions, rows)

    def draw_training(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        drawn = self.draw(key, positions, rows)
        return self.inner.draw_training(key, positions, rows) if drawn is positions else drawn

    def embed(self, p: Params, positions: jax.Array, width: int) -> jax.Array | None:
        return self.inner.embed(p, positions, width)

    def rotate(self, p: Params, x_BLHK: jax.Array, positions: jax.Array, length: jax.Array | None) -> jax.Array:
        return self.inner.rotate(p, x_BLHK, positions, length)

    def views(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, length: jax.Array | None
    ) -> list[tuple[jax.Array, jax.Array, Mask | None]]:
        return self.inner.views(p, q, k, pos_q, pos_k, length)

    def side_width(self, dims: Dims) -> int:
        return self.inner.side_width(dims)

    def side(
        self, p: Params, x_BLD: jax.Array, segment_ids: jax.Array | None, before: jax.Array | None
    ) -> jax.Array | None:
        return self.inner.side(p, x_BLD, segment_ids, before)

    def bias(
        self, p: Params, q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, side: Side | None = None
    ) -> TileBias | RowBias | None:
        return self.inner.bias(p, q, k, pos_q, pos_k, side)
