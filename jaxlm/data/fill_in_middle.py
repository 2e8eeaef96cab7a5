"""Fill in the middle: documents rearranged so that a left-to-right model learns to write what stands between two texts.

Paper: Bavarian et al. 2022, Efficient Training of Language Models to Fill in the Middle. A document is cut at two
places drawn uniformly over its characters, before it is tokenized, so that a model is not helpless where a cursor
stands inside a token. The three pieces are tokenized apart and written, with marks P, S, M for prefix, suffix and
middle, as

    psm         P prefix S suffix M middle
    spm         P S suffix M prefix middle      (joined: the middle continues the prefix without a mark)
    spm_plain   S suffix P prefix M middle

Every token is learned, as in the paper, with the objective of the next token: this is a matter of data alone. The cuts
of a document depend on (seed, index) only. At the document level (`FillInMiddle.encode`) whole documents are rearranged
before they are packed, and a long one may be cut by a row's end; at the context level (`ContextLevel`) the pieces of
documents that lie in one row are, and lose what no longer fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import choose
from jaxlm.data.pack import Batch, Packed, TokenStream
from jaxlm.data.records import Document
from jaxlm.tokenize.base import BOS, EOS, FIM, PAD, Tokenizer

ORDERS = ("psm", "spm", "spm_plain")
LEVELS = ("document", "context")
MARKS = FIM


def arrange(pieces: Sequence[ArrayLike], order: str, marks: Sequence[int]) -> NDArray[np.int32]:
    """The tokens of (prefix, middle, suffix) in one of `ORDERS`, int32 [n + 3].

    Args:
      pieces: integers [p], [m], [s].
      order: see the module.
      marks: ids of the marks of prefix, suffix and middle.
    """
    prefix, middle, suffix = (np.asarray(piece, np.int32).reshape(-1) for piece in pieces)
    P, S, M = (np.array([mark], np.int32) for mark in marks)
    parts = {
        "psm": (P, prefix, S, suffix, M, middle),
        "spm": (P, S, suffix, M, prefix, middle),
        "spm_plain": (S, suffix, P, prefix, M, middle),
    }[choose("order", order, ORDERS)]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class FillInMiddle(Spec):
    """How documents are rearranged.

    Attributes:
      seed: of which documents, cuts and orders.
      rate: the share of documents that are.
      joined: the share of these that are written in the order ``spm``; the others in ``plain``.
      plain: ``"psm"`` or ``"spm_plain"``.
      marks: the tokenizer's special tokens for prefix, suffix and middle.
      level: ``"document"`` before packing, or ``"context"`` within rows, which the paper found better.
    """

    paper: ClassVar[str] = "Bavarian et al. 2022, Efficient Training of Language Models to Fill in the Middle"

    seed: int = 0
    rate: float = 0.5
    joined: float = 0.5
    plain: str = "psm"
    marks: tuple[str, str, str] = MARKS
    level: str = "document"

    def check(self) -> None:
        require(0 <= self.seed < 2**64, f"FillInMiddle.seed: allowed 0..2**64 - 1, got {self.seed}")
        for name in ("rate", "joined"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"FillInMiddle.{name}: expected a share in [0, 1], got {value}")
        choose("FillInMiddle.plain", self.plain, ("psm", "spm_plain"))
        choose("FillInMiddle.level", self.level, LEVELS)
        require(len(set(self.marks)) == 3, f"FillInMiddle.marks: expected three different tokens, got {self.marks}")

    def cut(self, data: bytes, *index: int) -> tuple[tuple[bytes, bytes, bytes], str] | None:
        """((prefix, middle, suffix), order) of a document, or None if it stays as it is.

        Both cuts are uniform over the places between characters (bytes that are not UTF-8 count as one each), the ends
        included, and independent, so any piece may be empty.
        """
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, *index])))
        if rng.random() >= self.rate:
            return None
        order = "spm" if rng.random() < self.joined else self.plain
        text = data.decode("utf-8", "surrogateescape")
        first, last = sorted(rng.integers(0, len(text) + 1, 2).tolist())
        whole = (text[:first], text[first:last], text[last:])
        return tuple(piece.encode("utf-8", "surrogateescape") for piece in whole), order  # pyright: ignore

    def ids(self, data: bytes, tokenizer: Tokenizer, *index: int) -> NDArray[np.int32]:
        """The tokens of a document after its rearrangement, without begin and end."""
        found = self.cut(data, *index)
        if found is None:
            return tokenizer.encode(data)
        pieces, order = found
        return arrange([tokenizer.encode(p) for p in pieces], order, [tokenizer.special(mark) for mark in self.marks])

    def encode(
        self, documents: Iterable[Document], tokenizer: Tokenizer, *, bos: bool = True, eos: bool = True
    ) -> TokenStream:
        """`TokenStream.encode` with documents rearranged, the i-th by (seed, i). Those with a prompt stay as they are.

        Raises `ConfigError` if the tokenizer lacks a mark, or no document has text.
        """
        _ = [tokenizer.special(mark) for mark in self.marks]
        begin = np.array([tokenizer.special(BOS)] if bos else [], np.int32)
        end = np.array([tokenizer.special(EOS)] if eos else [], np.int32)
        pieces, sizes, read = [], [], []
        for i, document in enumerate(document for document in documents if document.text):
            prompt = tokenizer.encode(document.prompt)
            ids = tokenizer.encode(document.text) if document.prompt else self.ids(document.text, tokenizer, i)
            pieces += [begin, prompt, ids, end]
            sizes.append(sum(map(len, pieces[-4:])))
            read.append(len(begin) + len(prompt))
        require(sizes, "no document to train on: expected at least one that is not empty")
        stops = np.cumsum(np.array(sizes, np.int64))
        tokens = np.concatenate(pieces).astype(np.min_scalar_type(tokenizer.vocab_size - 1))
        return TokenStream(tokens, stops, stops - sizes + read, tokenizer.special_ids.get(PAD, 0))


class ContextLevel:
    """Rows of a `Packed` corpus whose pieces of documents are rearranged, each by (seed, row, piece).

    A piece is taken back to text, cut, and tokenized again, with the begin and end that it has. Three marks and cuts
    inside tokens make it longer, and what then lies beyond the row is lost, with the target of the row's last token.
    Pieces with a prompt, and those that are not chosen, keep their tokens.
    """

    def __init__(self, rows: Packed, how: FillInMiddle, tokenizer: Tokenizer):
        self.rows, self.how, self.tokenizer = rows, how, tokenizer
        self._marks = [tokenizer.special(mark) for mark in how.marks]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Batch:
        """One row, without the batch axis. Raises `IndexError` outside 0..len-1."""
        old = self.rows[row]
        pieces, read = [], []
        for k in range(1, int(old["segment_ids"].max()) + 1):
            at = np.flatnonzero(old["segment_ids"] == k)
            piece, targets = old["tokens"][at], old["weights"][at]
            unlearned = int(np.argmax(targets)) + 1 if targets.any() else len(at)
            begun = piece[:1] == self.tokenizer.special_ids.get(BOS, -1)
            prompted = unlearned > 1
            pieces.append(piece if prompted else self._rearranged(piece, int(begun[0]), (row, k)))
            read.append(unlearned)
        sizes = np.array([len(piece) for piece in pieces])
        stops = np.cumsum(sizes)
        stream = TokenStream(np.concatenate(pieces), stops, stops - sizes + read, self.rows.stream.pad)
        length = self.rows.length
        return {name: x[0] for name, x in stream.cut([0], [min(stops[-1], length)], length).items()}

    def batch(self, rows: ArrayLike) -> Batch:
        """Rows by number, int [B] -> batch [B, L]."""
        found = [self[int(row)] for row in np.asarray(rows)]
        return {name: np.stack([row[name] for row in found]) for name in found[0]}

    def _rearranged(self, piece: NDArray[np.int32], begun: int, index: tuple[int, int]) -> NDArray[np.int32]:
        """A piece of a document whose first ``begun`` tokens are its begin."""
        ended = int(len(piece) > begun and piece[-1] == self.tokenizer.special_ids.get(EOS, -1))
        body = piece[begun : len(piece) - ended]
        found = self.how.cut(self.tokenizer.decode_bytes(body), *index)
        if found is None:
            return piece
        middle = arrange([self.tokenizer.encode(p) for p in found[0]], found[1], self._marks)
        return np.concatenate([piece[:begun], middle, piece[len(piece) - ended :]])
