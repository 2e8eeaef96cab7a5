"""Masks made of masks: ``&``, ``|`` and ``~`` of any, and one for each head."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require, slot
from jaxlm.core.errors import ConfigError
from jaxlm.core.mask import Cells, Lowering, Mask, Span, Tile


class _Pair(Mask):
    left: Any
    right: Any

    @property
    def by_order(self) -> bool:
        return self.left.by_order and self.right.by_order

    def lower(self, to: Lowering) -> Cells:
        return self._joined(self.left.lower(to), self.right.lower(to))

    def cells(self, q: Span, k: Span) -> Cells:
        return self._joined(self.left.cells(q, k), self.right.cells(q, k))

    def _joined(self, left: Cells, right: Cells) -> Cells:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class And(_Pair):
    """What both masks show: ``left & right``."""

    paper: ClassVar[str] = "set intersection"

    left: Any = slot("mask", "causal")
    right: Any = slot("mask", "causal")

    @property
    def causal(self) -> bool:
        return self.left.causal or self.right.causal

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self.left.pointwise(pos_q, pos_k) & self.right.pointwise(pos_q, pos_k)

    def see(self, tile: Tile) -> jax.Array:
        left = self.left.see(tile)
        return left & self.right.see(tile)

    def _joined(self, left: Cells, right: Cells) -> Cells:
        return Cells(left.some & right.some, left.every & right.every)

    def most_blocks(self, queries: int, keys: int) -> int | None:
        bounds = [b for m in (self.left, self.right) if (b := m.most_blocks(queries, keys)) is not None]
        return min(bounds, default=None)

    def mean_keys(self, length: int) -> float:
        return min(self.left.mean_keys(length), self.right.mean_keys(length))


@dataclasses.dataclass(frozen=True)
class Or(_Pair):
    """What either mask shows: ``left | right``."""

    paper: ClassVar[str] = "set union"

    left: Any = slot("mask", "causal")
    right: Any = slot("mask", "causal")

    @property
    def causal(self) -> bool:
        return self.left.causal and self.right.causal

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self.left.pointwise(pos_q, pos_k) | self.right.pointwise(pos_q, pos_k)

    def see(self, tile: Tile) -> jax.Array:
        left = self.left.see(tile)
        return left | self.right.see(tile)

    def _joined(self, left: Cells, right: Cells) -> Cells:
        return Cells(left.some | right.some, left.every | right.every)

    def most_blocks(self, queries: int, keys: int) -> int | None:
        left, right = self.left.most_blocks(queries, keys), self.right.most_blocks(queries, keys)
        return None if left is None or right is None else left + right

    def mean_keys(self, length: int) -> float:
        bound = (length + 1) / 2 if self.causal else length
        return min(bound, self.left.mean_keys(length) + self.right.mean_keys(length))


@dataclasses.dataclass(frozen=True)
class Not(Mask):
    """What the mask hides: ``~mask``."""

    paper: ClassVar[str] = "set complement"

    mask: Any = slot("mask", "causal")

    @property
    def by_order(self) -> bool:
        return self.mask.by_order

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return ~self.mask.pointwise(pos_q, pos_k)

    def see(self, tile: Tile) -> jax.Array:
        return ~self.mask.see(tile)

    def lower(self, to: Lowering) -> Cells:
        return self._turned(self.mask.lower(to))

    def cells(self, q: Span, k: Span) -> Cells:
        return self._turned(self.mask.cells(q, k))

    def _turned(self, cells: Cells) -> Cells:
        return Cells(~cells.every, ~cells.some)


@dataclasses.dataclass(frozen=True)
class Heads(Spec):
    """``count`` heads with one mask, a part of `PerHead`."""

    count: int = 1
    mask: Any = slot("mask", "causal")


@dataclasses.dataclass(frozen=True)
class PerHead(Mask):
    """Masks that differ by head, first head first. Attention calls its kernel once for each distinct mask."""

    paper: ClassVar[str] = "Jiang et al. 2024, MInference 1.0 (a pattern for each head)"

    parts: tuple[Heads, ...] = (Heads(),)

    def check(self) -> None:
        require(
            self.parts and all(p.count > 0 for p in self.parts), "PerHead.parts: expected parts of at least one head"
        )

    @property
    def causal(self) -> bool:
        return all(part.mask.causal for part in self.parts)

    @property
    def heads(self) -> int:
        return sum(part.count for part in self.parts)

    def head(self, index: int) -> Mask:
        """The mask of one head."""
        for part in self.parts:
            if index < part.count:
                return part.mask
            index -= part.count
        raise ConfigError(f"PerHead.parts: {self.heads} heads in all, but attention has more")

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        each = [p.mask.pointwise(pos_q, pos_k) for p in self.parts for _ in range(p.count)]
        return jnp.concatenate(each, axis=1)

    def lower(self, to: Lowering) -> Cells:
        raise ConfigError("PerHead: a mask by head is lowered head by head (jaxlm.ops.attention does)")

    def mean_keys(self, length: int) -> float:
        return sum(p.count * p.mask.mean_keys(length) for p in self.parts) / self.heads
