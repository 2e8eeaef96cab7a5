"""Bytes as tokens (Xue et al. 2022, ByT5: Towards a Token-Free Future with Pre-trained Byte-to-Byte Models).

Byte b is id b; the special tokens follow at 256, 257, ... (ByT5 puts its specials first and shifts the bytes by 3; here
a vocabulary of 256 without specials, or with others, leaves every byte where it is). Nothing is learned, every byte
string has exactly one encoding, and a loss per token without specials is a loss per byte.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import require
from jaxlm.tokenize.base import BOS, BYTES, EOS, PAD, Tokenizer, check_specials


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """One token per byte.

    Attributes:
      specials: special tokens in id order from 256 on; ``()`` for a vocabulary of exactly the 256 bytes.
    """

    name: ClassVar[str] = "byte"
    paper: ClassVar[str] = "Xue et al. 2022, ByT5: Towards a Token-Free Future with Pre-trained Byte-to-Byte Models"

    specials: tuple[str, ...] = (BOS, EOS, PAD)

    def check(self) -> None:
        check_specials("ByteTokenizer.specials", self.specials)

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        return tuple(bytes([b]) for b in range(BYTES)) + (b"",) * len(self.specials)

    @property
    def special_ids(self) -> dict[str, int]:
        return {name: BYTES + i for i, name in enumerate(self.specials)}

    @classmethod
    def train(cls, texts: Iterable[str | bytes] = (), vocab_size: int | None = None) -> Self:
        """The tokenizer itself: there is nothing to learn, and ``texts`` is not read."""
        size = cls().vocab_size
        require(vocab_size in (None, size), f"a byte tokenizer has {size} ids (bytes and specials), not {vocab_size}")
        return cls()

    def _encode(self, data: bytes) -> NDArray[np.int32]:
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        valid = self._valid(ids)
        return valid[valid < BYTES].astype(np.uint8).tobytes()
