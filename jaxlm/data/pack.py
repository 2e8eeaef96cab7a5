"""Documents into rows of a fixed length, by random access.

All documents lie end to end in one `TokenStream`; a row is an interval of it. `Packed` cuts the stream every L tokens
(documents joined, and split over rows where they must be); `Padded` gives each document rows of its own. No row is
built before it is asked for, so row i costs the same whatever i is, and nothing needs to be replayed on resume.

Every batch of the library is a dict of numpy arrays [B, L]:

    tokens       int32    what the model reads; the pad id where there is nothing
    targets      int32    the token that follows in the same document; the pad id where there is none
    weights      float32  1 where the target counts in the loss; 0 on padding, at the end of a document, and for targets
                          inside a prompt
    segment_ids  int32    1, 2, ... per piece of a document in the row; 0 is padding
    positions    int32    0, 1, ... from the start of each piece

A piece that is cut by the end of the row still knows its next target, since the stream goes on: so each pair of
neighbours in a document is a target exactly once, packed or padded, whatever L is. No target crosses documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.data.records import Document
from jaxlm.tokenize.base import BOS, PAD, Tokenizer

Batch = dict[str, NDArray]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStream:
    """Tokenized documents end to end.

    Attributes:
      tokens: [N], the smallest unsigned dtype that holds the vocabulary.
      stops: int64 [D], where each document ends (none is empty).
      learned: int64 [D], the first token of each document that may be a target.
      pad: the id that fills rows.
    """

    tokens: NDArray[np.unsignedinteger]
    stops: NDArray[np.int64]
    learned: NDArray[np.int64]
    pad: int = 0

    @classmethod
    def encode(cls, documents: Iterable[Document], tokenizer: Tokenizer, *, bos: bool = True, eos: bool = True) -> Self:
        """Tokenizes documents, each as ``<bos> prompt text <eos>``; those without text are left out.

        With ``bos`` the first token of a text is predicted too (from nothing), so a loss covers every byte; with
        ``eos`` the end is. A prompt is tokenized apart from its text. The pad id is ``<pad>``, or 0 if there is none.

        Raises:
          ConfigError: no document has text, or the tokenizer lacks a special token that is asked for.
        """
        dtype = np.min_scalar_type(max(tokenizer.vocab_size - 1, 0))
        pieces, sizes, prompts = [np.zeros(0, dtype)], [], []
        for document in documents:
            if not document.text:
                continue
            prompt = tokenizer.encode(document.prompt) if document.prompt else np.zeros(0, np.int32)
            text = tokenizer.encode(document.text, eos=eos)
            start = np.array([tokenizer.special(BOS)] if bos else [], np.int32)
            pieces.append(np.concatenate([start, prompt, text]).astype(dtype))
            sizes.append(len(pieces[-1]))
            prompts.append(len(start) + len(prompt))
        if not sizes:
            raise ConfigError("no document to train on: expected at least one that is not empty")
        stops = np.cumsum(np.array(sizes, np.int64))
        learned = stops - np.array(sizes, np.int64) + np.array(prompts, np.int64)
        return cls(np.concatenate(pieces), stops, learned, tokenizer.special_ids.get(PAD, 0))

    @property
    def num_targets(self) -> int:
        """How many targets count in the loss: the sum of ``weights`` over all rows."""
        starts = np.concatenate([[0], self.stops])[:-1]
        return int(np.sum(self.stops - np.maximum(self.learned, starts + 1)))

    def cut(self, starts: ArrayLike, stops: ArrayLike, length: int) -> Batch:
        """The intervals [starts, stops) of the stream as a batch of rows of ``length`` >= their size.

        Args:
          starts: int64 [B].
          stops: int64 [B].
          length: L.
        """
        first, last = np.asarray(starts, np.int64)[:, None], np.asarray(stops, np.int64)[:, None]
        at = first + np.arange(length)
        real = at < last
        at = np.where(real, at, last - 1)  # padding repeats the last token's place, and is blanked below
        document = np.searchsorted(self.stops, at, side="right")
        begin = np.concatenate([[0], self.stops])[document]
        follows = real & (at + 1 < self.stops[document])
        after = np.minimum(at + 1, len(self.tokens) - 1)
        return {
            "tokens": np.where(real, self.tokens[at], self.pad).astype(np.int32),
            "targets": np.where(follows, self.tokens[after], self.pad).astype(np.int32),
            "weights": (follows & (at + 1 >= self.learned[document])).astype(np.float32),
            "segment_ids": np.where(real, document - document[:, :1] + 1, 0).astype(np.int32),
            "positions": np.where(real, at - np.maximum(begin, first), 0).astype(np.int32),
        }


class Packed:
    """Rows of L tokens cut from the joined documents; only the last one has padding."""

    def __init__(self, stream: TokenStream, length: int):
        self.stream, self.length = stream, _checked(length)

    def __len__(self) -> int:
        return -(-len(self.stream.tokens) // self.length)

    def batch(self, rows: ArrayLike) -> Batch:
        """Rows by number, int [B] -> batch [B, L]. Raises `IndexError` outside 0..len-1."""
        starts = _within(rows, len(self)) * self.length
        return self.stream.cut(starts, np.minimum(starts + self.length, len(self.stream.tokens)), self.length)

    def __getitem__(self, row: int) -> Batch:
        """One row, without the batch axis."""
        return {name: array[0] for name, array in self.batch([row]).items()}


class Padded:
    """Each document in rows of its own; one longer than L goes on in the next row, with positions from 0 again."""

    def __init__(self, stream: TokenStream, length: int):
        self.stream, self.length = stream, _checked(length)
        self._starts = np.concatenate([[0], stream.stops])[:-1]
        self._rows = np.cumsum(-(-(stream.stops - self._starts) // self.length))

    def __len__(self) -> int:
        return int(self._rows[-1])

    def batch(self, rows: ArrayLike) -> Batch:
        """Rows by number, int [B] -> batch [B, L]. Raises `IndexError` outside 0..len-1."""
        row = _within(rows, len(self))
        document = np.searchsorted(self._rows, row, side="right")
        piece = row - np.concatenate([[0], self._rows])[document]
        starts = self._starts[document] + piece * self.length
        return self.stream.cut(starts, np.minimum(starts + self.length, self.stream.stops[document]), self.length)

    def __getitem__(self, row: int) -> Batch:
        """One row, without the batch axis."""
        return {name: array[0] for name, array in self.batch([row]).items()}


LAYOUTS = {"pack": Packed, "pad": Padded}


def rows(stream: TokenStream, length: int, layout: str = "pack") -> Packed | Padded:
    """The rows of a stream, ``layout`` by name: ``"pack"`` or ``"pad"``. Raises `ConfigError` for another."""
    return LAYOUTS[choose("layout", layout, LAYOUTS)](stream, length)


def _checked(length: int) -> int:
    require(length >= 2, f"row length: expected at least 2 tokens, got {length}")
    return length


def _within(rows: ArrayLike, count: int) -> NDArray[np.int64]:
    index = np.asarray(rows, np.int64)
    if index.size and (index.min() < 0 or index.max() >= count):
        raise IndexError(f"row {index[(index < 0) | (index >= count)][0]} is outside 0..{count - 1}")
    return index
