"""Pairs of texts as a batch: what an encoder-decoder reads, and what it is to write.

The entries, for B rows:

    source           int32   [B, S]  what the encoder reads
    source_segments  int32   [B, S]  1, and 0 on padding
    tokens           int32   [B, L]  the start token, and the target but for its last
    targets          int32   [B, L]  the target
    weights          float32 [B, L]  1 on the target, 0 on padding
    segment_ids      int32   [B, L]  1, and 0 on padding
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.core.config import require


def pair_batch(
    sources: Sequence[ArrayLike], targets: Sequence[ArrayLike], source_length: int, target_length: int, start: int
) -> dict[str, np.ndarray]:
    """One pair of token ids a row, padded on the right to S and L; ``start`` is the model's start token.

    Raises `ConfigError` for a source or target that is empty or does not fit.
    """
    require(len(sources) == len(targets), f"pair_batch: {len(sources)} sources and {len(targets)} targets")
    source, target = _padded("source", sources, source_length), _padded("target", targets, target_length)
    real = np.stack([np.arange(target_length) < np.size(one) for one in targets])
    begun = np.concatenate([np.full((len(targets), 1), start, np.int32), target[:, :-1]], 1)
    return {
        "source": source,
        "source_segments": np.stack([np.arange(source_length) < np.size(one) for one in sources]).astype(np.int32),
        "tokens": np.where(real, begun, 0),
        "targets": target,
        "weights": real.astype(np.float32),
        "segment_ids": real.astype(np.int32),
    }


def _padded(name: str, rows: Sequence[ArrayLike], length: int) -> np.ndarray:
    out = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        size = np.size(row)
        require(0 < size <= length, f"pair_batch: {name} {i} has {size} tokens; expected 1 to {length}")
        out[i, :size] = row
    return out
