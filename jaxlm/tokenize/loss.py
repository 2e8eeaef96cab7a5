"""Losses that are compared only where they mean the same.

    bits per byte = summed loss in nats / (ln 2 * bytes of text)

A loss per token depends on what a token is: a vocabulary of longer tokens has fewer and harder ones, and its loss per
token is larger for the same model of the text. So `Loss` remembers the vocabulary it was measured in; ordering,
differences and ratios of losses per token raise `ConfigError` between vocabularies, and bits per byte are plain
numbers. Where the end of a text is predicted, its loss counts and it is a token, but it has no bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.tokenize.base import Tokenizer


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Bits per byte from the sum of the tokens' losses in nats. Raises `ConfigError` for text without bytes."""
    require(num_bytes > 0, f"bits per byte of {num_bytes} bytes: expected at least 1")
    return float(nats) / (math.log(2) * num_bytes)


def digest(tokenizer: Tokenizer) -> str:
    """What names a vocabulary in a `Loss`: 16 hex digits of a hash of `token_bytes`, in the order of ids.

    Tokenizers that cut the same text differently with the same tokens have the same digest; `Loss` sees that from the
    number of tokens.
    """
    found = hashlib.sha256()
    for piece in tokenizer.token_bytes:
        found.update(struct.pack("<Q", len(piece)))
        found.update(piece)
    return found.hexdigest()[:16]


class PerToken(float):
    """Nats per token, a number that refuses to be compared with one of another vocabulary.

    It orders, subtracts and divides like the float that it is, with plain numbers too (a threshold, a factor).
    """

    vocabulary: str
    segmentation: tuple[int, int]

    def __new__(cls, value: float, vocabulary: str, segmentation: tuple[int, int]) -> Self:
        new = super().__new__(cls, value)
        new.vocabulary, new.segmentation = vocabulary, segmentation
        return new

    def __getnewargs__(self) -> tuple[float, str, tuple[int, int]]:  # what a copy is made of
        return float(self), self.vocabulary, self.segmentation

    def __eq__(self, other: object) -> bool:
        self._same(other)
        return float(self) == other

    def __ne__(self, other: object) -> bool:  # float has its own
        return not self == other

    def __hash__(self) -> int:
        return float.__hash__(self)

    def __lt__(self, other: float) -> bool:
        self._same(other)
        return float(self) < float(other)

    def __le__(self, other: float) -> bool:
        self._same(other)
        return float(self) <= float(other)

    def __gt__(self, other: float) -> bool:
        self._same(other)
        return float(self) > float(other)

    def __ge__(self, other: float) -> bool:
        self._same(other)
        return float(self) >= float(other)

    def __sub__(self, other: float) -> float:
        self._same(other)
        return float(self) - float(other)

    def __truediv__(self, other: float) -> float:
        self._same(other)
        return float(self) / float(other)

    def _same(self, other: object) -> None:
        if not isinstance(other, PerToken):
            return
        if self.vocabulary != other.vocabulary:
            raise ConfigError(
                f"losses per token of different vocabularies ({self.vocabulary} and {other.vocabulary}) "
                "cannot be compared; compare bits_per_byte"
            )
        (tokens, size), (others, other_size) = self.segmentation, other.segmentation
        if size == other_size and tokens != others:
            raise ConfigError(
                f"losses per token of {size} bytes cut into {tokens} and into {others} tokens cannot be compared; "
                "compare bits_per_byte"
            )


@dataclasses.dataclass(frozen=True)
class Loss(Spec):
    """The summed loss of a text. Ordering, ``-`` and ``/`` are those of `per_token`; ``+`` pools two texts.

    Attributes:
      nats: sum over the tokens.
      tokens: how many were predicted, ends of texts included.
      bytes: of the text they stand for.
      vocabulary: the tokenizer's `digest`, or any name that only one vocabulary has.
    """

    nats: float
    tokens: int
    bytes: int
    vocabulary: str

    def check(self) -> None:
        require(math.isfinite(self.nats), f"Loss.nats: expected a finite sum, got {self.nats}")
        for name in ("tokens", "bytes"):
            require(getattr(self, name) > 0, f"Loss.{name}: expected at least 1, got {getattr(self, name)}")
        require(self.vocabulary, "Loss.vocabulary: expected the digest of a tokenizer, got an empty string")

    @classmethod
    def of(cls, tokenizer: Tokenizer, ids: ArrayLike, nats: ArrayLike) -> Self:
        """The loss of tokens [n] from their losses in nats, [n]. Raises `ConfigError` if the shapes differ."""
        tokens, losses = np.asarray(ids), np.asarray(nats, np.float64)
        require(tokens.shape == losses.shape, f"Loss.of: {tokens.shape} tokens and {losses.shape} losses")
        size = len(tokenizer.decode_bytes(tokens))
        return cls(float(losses.sum()), int(tokens.size), size, digest(tokenizer))

    @property
    def bits_per_byte(self) -> float:
        """A plain number, the same measure in every vocabulary."""
        return bits_per_byte(self.nats, self.bytes)

    @property
    def per_token(self) -> PerToken:
        """Nats per token, comparable only within the vocabulary."""
        return PerToken(self.nats / self.tokens, self.vocabulary, (self.tokens, self.bytes))

    def __add__(self, other: Loss) -> Loss:
        """The loss of both texts. Raises `ConfigError` if the vocabularies differ."""
        if not isinstance(other, Loss):
            return NotImplemented
        require(
            self.vocabulary == other.vocabulary,
            f"losses in different vocabularies ({self.vocabulary} and {other.vocabulary}) cannot be pooled",
        )
        pooled = (self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)
        return Loss(*pooled, self.vocabulary)

    def __lt__(self, other: Loss) -> bool:
        return self.per_token < _loss(other).per_token

    def __le__(self, other: Loss) -> bool:
        return self.per_token <= _loss(other).per_token

    def __gt__(self, other: Loss) -> bool:
        return self.per_token > _loss(other).per_token

    def __ge__(self, other: Loss) -> bool:
        return self.per_token >= _loss(other).per_token

    def __sub__(self, other: Loss) -> float:
        return self.per_token - _loss(other).per_token

    def __truediv__(self, other: Loss) -> float:
        return self.per_token / _loss(other).per_token


def _loss(value: Any) -> Loss:
    require(isinstance(value, Loss), f"expected a Loss to compare with, got {type(value).__name__} {shown(value)}")
    return value
