"""Masks as data: which key a query may see, by their positions.

A mask is never an array until a back end evaluates a tile of it with `pointwise`; `dense` is for references and tests.
Segments and padding are not masks: they are per-token data and attention takes them as arguments.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from jaxlm.core.config import Spec, require, slot
from jaxlm.core.types import Mask


@dataclasses.dataclass(frozen=True)
class Causal(Spec):
    """A query sees itself and everything before it."""

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need"
    causal: ClassVar[bool] = True

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return pos_k <= pos_q

    def mean_keys(self, length: int) -> float:
        return (length + 1) / 2


@dataclasses.dataclass(frozen=True)
class Bidirectional(Spec):
    """Every query sees every key."""

    paper: ClassVar[str] = "Devlin et al. 2018, BERT"
    causal: ClassVar[bool] = False

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k == pos_k) & (pos_q == pos_q)

    def mean_keys(self, length: int) -> float:
        return length


@dataclasses.dataclass(frozen=True)
class Window(Spec):
    """A query sees itself and the ``size - 1`` positions before it."""

    paper: ClassVar[str] = "Beltagy et al. 2020, Longformer (causal sliding window)"
    causal: ClassVar[bool] = True

    size: int = 256

    def check(self) -> None:
        require(
            hasattr(self.size, "aval") or self.size > 0, f"Window.size: expected a positive integer, got {self.size}"
        )

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k <= pos_q) & (pos_q - pos_k < self.size)

    def mean_keys(self, length: int) -> float:
        return min((length + 1) / 2, self.size)


@dataclasses.dataclass(frozen=True)
class Chunked(Spec):
    """A query sees itself and what is before it in its own chunk: positions 0 to ``size - 1``, ``size`` to ..."""

    paper: ClassVar[str] = "Meta 2025, Llama 4 (chunked attention in the layers with rotary positions)"
    causal: ClassVar[bool] = True

    size: int = 8192

    def check(self) -> None:
        require(
            hasattr(self.size, "aval") or self.size > 0, f"Chunked.size: expected a positive integer, got {self.size}"
        )

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k <= pos_q) & (pos_q // self.size == pos_k // self.size)

    def mean_keys(self, length: int) -> float:
        return (min(length, self.size) + 1) / 2


@dataclasses.dataclass(frozen=True)
class Both(Spec):
    """What two masks both show."""

    paper: ClassVar[str] = "set intersection"

    left: Any = slot("mask", "causal")
    right: Any = slot("mask", "causal")

    @property
    def causal(self) -> bool:
        return self.left.causal or self.right.causal

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return self.left.pointwise(pos_q, pos_k) & self.right.pointwise(pos_q, pos_k)

    def mean_keys(self, length: int) -> float:
        return min(self.left.mean_keys(length), self.right.mean_keys(length))


def dense(mask: Mask, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
    """The whole mask as booleans [B, Lq, Lk], from positions [B, Lq] and [B, Lk]. For references only: it is L x L."""
    return mask.pointwise(pos_q[:, :, None], pos_k[:, None, :])
