"""The masks: which key a query may see, by their positions.

A mask is never an array until a back end evaluates a tile of it. It has three lowerings, which agree: `Mask.pointwise`;
a block map (`jaxlm.ops.block_map`), static or traced, of the tiles that hold a visible pair; and `dense`, L x L, for
references and tests. Documents and padding of a batch are rather told to attention as segment ids; `Segments` is for
documents at known places. Masks that carry data of tokens or blocks are in `data_mask`, those made of others in
`combine`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from jaxlm.attention.data_mask import Anchor, Blocks, Diagonals, Globals, Segments, positive
from jaxlm.core.config import require
from jaxlm.core.mask import Cells, Mask, Span

__all__ = [
    "Anchor",
    "Bidirectional",
    "BlockBand",
    "Blocks",
    "Causal",
    "Chunked",
    "Diagonals",
    "Dilated",
    "Globals",
    "Lambda",
    "Prefix",
    "Segments",
    "Sinks",
    "Strided",
    "Window",
    "dense",
]


def _distances(q: Span, k: Span) -> Span:
    """The least and greatest distance, query minus key, in each tile."""
    return Span(q.low - k.high, q.high - k.low)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """A query sees itself and everything before it."""

    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need"
    causal: ClassVar[bool] = True
    by_order: ClassVar[bool] = True

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return pos_k <= pos_q

    def cells(self, q: Span, k: Span) -> Cells:
        return Cells(k.low <= q.high, k.high <= q.low)


@dataclasses.dataclass(frozen=True)
class Bidirectional(Mask):
    """Every query sees every key."""

    paper: ClassVar[str] = "Devlin et al. 2018, BERT"
    by_order: ClassVar[bool] = True
    causal: ClassVar[bool] = False

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k == pos_k) & (pos_q == pos_q)

    def cells(self, q: Span, k: Span) -> Cells:
        known = (k.low == k.low) & (q.low == q.low)
        return Cells(known, known)


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """A query sees itself, the ``size - 1`` positions before it and the ``ahead`` positions after."""

    paper: ClassVar[str] = "Beltagy et al. 2020, Longformer (sliding window)"

    size: int = 256
    ahead: int = 0

    def check(self) -> None:
        positive(self, "size")
        require(
            not hasattr(self.ahead, "aval") and self.ahead >= 0, f"Window.ahead: expected 0 or more, got {self.ahead}"
        )

    @property
    def causal(self) -> bool:
        return self.ahead == 0

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k <= pos_q + self.ahead) & (pos_q - pos_k < self.size)

    def cells(self, q: Span, k: Span) -> Cells:
        low, high = _distances(q, k)
        return Cells((low < self.size) & (high >= -self.ahead), (low >= -self.ahead) & (high < self.size))

    def most_blocks(self, queries: int, keys: int) -> int | None:
        return None if hasattr(self.size, "aval") else 1 - (-(queries + self.size + self.ahead - 2) // keys)

    def mean_keys(self, length: int) -> float:
        return min((length + 1) / 2, self.size) + min((length - 1) / 2, self.ahead)


@dataclasses.dataclass(frozen=True)
class Dilated(Mask):
    """A causal window with gaps: a query sees itself and, before it, ``size - 1`` positions ``step`` apart."""

    paper: ClassVar[str] = "Beltagy et al. 2020, Longformer (dilated sliding window)"
    causal: ClassVar[bool] = True

    size: int = 256
    step: int = 2

    def check(self) -> None:
        positive(self, "size", "step")

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        distance = pos_q - pos_k
        return (distance >= 0) & (distance < self.size * self.step) & (distance % self.step == 0)

    def cells(self, q: Span, k: Span) -> Cells:
        low, high = _distances(q, k)
        reach = (self.size - 1) * self.step
        first = (low > 0) * -(-low // self.step) * self.step  # the least distance in the tile that is seen
        every = (low >= 0) & (high <= reach) & ((low == high) & (low % self.step == 0) | (self.step == 1))
        return Cells((first <= high) & (first <= reach), every)

    def most_blocks(self, queries: int, keys: int) -> int | None:
        if hasattr(self.size, "aval") or hasattr(self.step, "aval"):
            return None
        return 1 - (-(queries + self.size * self.step - 2) // keys)

    def mean_keys(self, length: int) -> float:
        return min((length + 1) / 2, self.size)


@dataclasses.dataclass(frozen=True)
class Strided(Mask):
    """A query sees every ``stride``-th position, counted from itself, before it and after; or with ``block`` every
    ``stride``-th block of so many positions, counted from its own."""

    paper: ClassVar[str] = "Child et al. 2019, Generating Long Sequences with Sparse Transformers (strided)"

    stride: int = 128
    block: int = 1

    def check(self) -> None:
        positive(self, "stride", "block")

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_q // self.block - pos_k // self.block) % self.stride == 0

    def cells(self, q: Span, k: Span) -> Cells:
        low = q.low // self.block - k.high // self.block
        high = q.high // self.block - k.low // self.block
        every = (low == high) & (low % self.stride == 0) | (self.stride == 1)
        return Cells(high // self.stride * self.stride >= low, every)

    def mean_keys(self, length: int) -> float:
        return length / self.stride + self.block


@dataclasses.dataclass(frozen=True)
class Chunked(Mask):
    """A query sees itself and what is before it in its own chunk: positions 0 to ``size - 1``, ``size`` to ..."""

    paper: ClassVar[str] = "Meta 2025, Llama 4 (chunked attention in the layers with rotary positions)"
    causal: ClassVar[bool] = True

    size: int = 8192

    def check(self) -> None:
        positive(self, "size")

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k <= pos_q) & (pos_q // self.size == pos_k // self.size)

    def cells(self, q: Span, k: Span) -> Cells:
        apart = (q.low // self.size > k.high // self.size) | (k.low // self.size > q.high // self.size)
        one = (q.low // self.size == k.high // self.size) & (q.high // self.size == k.low // self.size)
        return Cells((k.low <= q.high) & ~apart, (k.high <= q.low) & one)

    def most_blocks(self, queries: int, keys: int) -> int | None:
        return None if hasattr(self.size, "aval") else 1 - (-(queries + self.size - 2) // keys)

    def mean_keys(self, length: int) -> float:
        return (min(length, self.size) + 1) / 2


@dataclasses.dataclass(frozen=True)
class BlockBand(Mask):
    """In a row of ``blocks`` blocks of ``size`` positions, a query sees its own block and ``reach`` on either side; the
    ``ends`` first and last blocks see all and are seen by all."""

    paper: ClassVar[str] = "Zaheer et al. 2020, Big Bird (window and global blocks)"

    size: int = 64
    blocks: int = 16
    reach: int = 1
    ends: int = 1

    def check(self) -> None:
        positive(self, "size", "blocks")
        require(
            not hasattr(self.reach, "aval") and self.reach >= 0 and not hasattr(self.ends, "aval") and self.ends >= 0,
            f"BlockBand: expected reach and ends of 0 or more, got {self.reach} and {self.ends}",
        )

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        q, k = pos_q // self.size, pos_k // self.size
        near = (k - q <= self.reach) & (q - k <= self.reach)
        return near | self._beyond(q, q, some=True) | self._beyond(k, k, some=True)

    @property
    def grain(self) -> int:
        return self.size

    def _beyond(self, low: Any, high: Any, *, some: bool) -> Any:
        """Whether some or all of the blocks ``low`` to ``high`` are among the ends."""
        first, last = (low, high) if some else (high, low)
        return (first < self.ends) | (last >= self.blocks - self.ends)

    def cells(self, q: Span, k: Span) -> Cells:
        q, k = (Span(span.low // self.size, span.high // self.size) for span in (q, k))
        low, high = _distances(q, k)
        some = (low <= self.reach) & (high >= -self.reach)
        every = (low >= -self.reach) & (high <= self.reach)
        return Cells(
            some | self._beyond(*q, some=True) | self._beyond(*k, some=True),
            every | self._beyond(*q, some=False) | self._beyond(*k, some=False),
        )

    def mean_keys(self, length: int) -> float:
        ends = self.ends * self.size + max(0, length - (self.blocks - self.ends) * self.size)
        return min(length, (2 * self.reach + 1) * self.size + 2.0 * ends)


@dataclasses.dataclass(frozen=True)
class Sinks(Mask):
    """A query sees the first ``count`` positions, none later than itself."""

    paper: ClassVar[str] = "Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks"
    causal: ClassVar[bool] = True

    count: int = 4

    def check(self) -> None:
        positive(self, "count")

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k < self.count) & (pos_k <= pos_q)

    def cells(self, q: Span, k: Span) -> Cells:
        return Cells((k.low < self.count) & (k.low <= q.high), (k.high < self.count) & (k.high <= q.low))

    def most_blocks(self, queries: int, keys: int) -> int | None:
        return None if hasattr(self.count, "aval") else -(-self.count // keys)

    def mean_keys(self, length: int) -> float:
        return self.count


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Every query sees the first ``length`` positions, earlier ones too: ``Causal() | Prefix(n)`` is a prefix LM."""

    paper: ClassVar[str] = "Raffel et al. 2020, Exploring the Limits of Transfer Learning (prefix LM)"

    length: int = 1

    def check(self) -> None:
        positive(self, "length")

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k < self.length) & (pos_q == pos_q)

    def cells(self, q: Span, k: Span) -> Cells:
        known = q.low == q.low
        return Cells((k.low < self.length) & known, (k.high < self.length) & known)

    def most_blocks(self, queries: int, keys: int) -> int | None:
        return None if hasattr(self.length, "aval") else -(-self.length // keys)

    def mean_keys(self, length: int) -> float:
        return self.length


@dataclasses.dataclass(frozen=True)
class Lambda(Mask):
    """The first ``sinks`` positions and a window: ``Window(size) | Sinks(sinks)``, whose tiles it knows exactly."""

    paper: ClassVar[str] = "Han et al. 2023, LM-Infinite (the Lambda-shaped mask); MInference's A-shape"
    causal: ClassVar[bool] = True

    size: int = 512
    sinks: int = 4

    def check(self) -> None:
        positive(self, "size", "sinks")

    def pointwise(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return (pos_k <= pos_q) & ((pos_q - pos_k < self.size) | (pos_k < self.sinks))

    def cells(self, q: Span, k: Span) -> Cells:
        near = _distances(q, k)
        some = (k.low <= q.high) & ((near.low < self.size) | (k.low < self.sinks))
        # A tile is whole too where its window reaches down to the sinks.
        every = (k.high <= q.low) & (
            (near.high < self.size) | (k.high < self.sinks) | (q.high - self.size < self.sinks)
        )
        return Cells(some, every)

    def most_blocks(self, queries: int, keys: int) -> int | None:
        if hasattr(self.size, "aval") or hasattr(self.sinks, "aval"):
            return None
        return 1 - (-(queries + self.size - 2) // keys) - (-self.sinks // keys)

    def mean_keys(self, length: int) -> float:
        return min((length + 1) / 2, self.size + self.sinks)


def dense(mask: Mask, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
    """The whole mask, bool [B or 1, H or 1, Lq, Lk], from positions [B, Lq] and [B, Lk]. For references: L x L."""
    return mask.pointwise(pos_q[:, None, :, None], pos_k[:, None, None, :])
