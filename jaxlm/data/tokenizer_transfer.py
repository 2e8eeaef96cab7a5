"""Batches for training a hypernetwork of embeddings: texts under a sampled tokenizer, and how the original spells it.

Everything has a fixed shape whatever tokenizer was drawn: B rows of L tokens, a vocabulary of N rows, P pieces of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.tokenize.base import BOS, Tokenizer
from jaxlm.tokenize.overlap import overlap, pieces_of

Arrays = dict[str, NDArray]


def spelling(source: Tokenizer, target: Tokenizer, rows: int = 0, max_pieces: int = 7) -> Arrays:
    """How ``source`` spells every token of ``target``.

    Args:
      rows: N, at least the target's ids; 0 for as many. Rows beyond them have no pieces.
      max_pieces: P; of longer tokens the first pieces are kept.

    Returns:
      ``pieces`` int32 [N, P], ``piece_mask`` bool [N, P], ``copied`` bool [N] (special tokens, whose piece is their
      counterpart; without one they have no piece) and ``shared`` int32 [N] (the source token, -1 for none).

    Raises `ConfigError` for a vocabulary beyond ``rows``, or a token that the source cannot spell.
    """
    size = target.vocab_size
    rows = rows or size
    require(size <= rows, f"the tokenizer has {size} ids, the batch room for {rows}")
    same = overlap(source, target)
    pieces, mask = np.zeros((rows, max_pieces), np.int32), np.zeros((rows, max_pieces), np.bool_)
    shared, copied = np.full(rows, -1, np.int32), np.zeros(rows, np.bool_)
    new = np.flatnonzero(same < 0)
    spelt = dict(zip(new.tolist(), pieces_of(source, [target.token_bytes[i] for i in new]), strict=True))
    for i in range(size):
        found = ([int(same[i])] if same[i] >= 0 else spelt[i])[:max_pieces]
        special = not target.token_bytes[i]
        copied[i] = special and bool(found)
        pieces[i, : len(found)], mask[i, : len(found)] = found, True
        shared[i] = -1 if special else same[i]
    return {"pieces": pieces, "piece_mask": mask, "copied": copied, "shared": shared}


def snippets(texts: Sequence[bytes], draws: np.random.Generator, number: int, size: int) -> list[bytes]:
    """Pieces of texts, at most ``size`` bytes each, from the start of a line; texts with nothing in them have none."""
    found, texts = [], [text for text in texts if text]
    for i in draws.integers(0, len(texts), number).tolist():
        text = texts[i]
        start = text.rfind(b"\n", 0, int(draws.integers(0, len(text)))) + 1
        found.append(text[start : start + size])
    return found


def rows_of(target: Tokenizer, texts: Sequence[str | bytes], length: int, *, bos: bool = False) -> Arrays:
    """Texts for next-token prediction, one a row, cut to ``length`` tokens.

    Returns:
      ``tokens``, ``targets``, ``segment_ids`` int32 [B, L], ``weights`` float32 [B, L] and ``bytes`` float32 [B, L],
      those of the target; padding has segment and weight 0.
    """
    require(length >= 1, f"length: expected 1 or more, got {length}")
    shape = len(texts), length
    out: Arrays = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segment_ids")}
    out |= {name: np.zeros(shape, np.float32) for name in ("weights", "bytes")}
    sizes = np.array([len(piece) for piece in target.token_bytes], np.float32)
    for row, text in enumerate(texts):
        ids = target.encode(text)[: length + 1]
        ids = np.concatenate([[target.special(BOS)], ids])[: length + 1] if bos else ids
        count = max(len(ids) - 1, 0)
        out["tokens"][row, :count], out["targets"][row, :count] = ids[:count], ids[1:]
        out["segment_ids"][row, :count] = 1
        out["weights"][row, :count] = 1.0
        out["bytes"][row, :count] = sizes[ids[1:]]
    return out


def transfer_batch(
    source: Tokenizer,
    target: Tokenizer,
    texts: Sequence[str | bytes],
    length: int,
    *,
    rows: int = 0,
    max_pieces: int = 7,
    bos: bool = False,
) -> Arrays:
    """A batch of `jaxlm.objective.tokenizer_transfer`: `rows_of` the texts and the `spelling` of the tokenizer."""
    return {**rows_of(target, texts, length, bos=bos), **spelling(source, target, rows, max_pieces)}
