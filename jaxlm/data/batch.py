"""Examples as a batch: the one dict of arrays that every loader, objective and trainer of the library speaks.

The entries, for B rows of L places:

    tokens       int32   [B, L]  the model's inputs
    targets      int32   [B, L]  the next token at each place, or the label of tasks that have labels
    weights      float32 [B, L]  1 where the target counts in the loss, 0 elsewhere
    segment_ids  int32   [B, L]  1, 2, ... for the documents of a row, 0 on padding
    positions    int32   [B, L]  0, 1, ... within each document
    position_ids int32   [B, L]  what position encodings look up in their place; only where examples say so
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxlm.core.errors import ConfigError
from jaxlm.data.tasks.base import PAD, Example


def pad_batch(examples: Sequence[Example], length: int) -> dict[str, np.ndarray]:
    """One example a row, padded on the right; only target tokens (``<eos>`` among them) have weight.
    Where an example has labels, they are the targets, and only they have weight.

    An example of T tokens takes T - 1 places (the last token is only ever predicted), so ``tokens_bound(n) - 1`` always
    fits. Positions run on over the padding, which no real token attends to.

    Returns:
      the batch (see the module's docstring), B = ``len(examples)``, L = ``length``.

    Raises:
      ConfigError: an example needs more than ``length`` places.
    """
    shape = (len(examples), length)
    tokens, targets = np.full(shape, PAD, np.int32), np.full(shape, PAD, np.int32)
    weights, segment_ids = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for row, example in enumerate(examples):
        used = len(example.tokens) - 1
        if used > length:
            raise ConfigError(f"pad_batch: example {row} needs {used} places, got length {length}; try tokens_bound")
        tokens[row, :used] = example.tokens[:-1]
        targets[row, :used] = example.tokens[1:]
        if example.labels is None:
            weights[row, example.prompt_length - 1 : used] = 1.0
        else:
            labelled = example.labels >= 0
            targets[row, :used] = np.where(labelled, example.labels, targets[row, :used])
            weights[row, :used] = labelled
        segment_ids[row, :used] = 1
    positions = np.tile(np.arange(length, dtype=np.int32), (len(examples), 1))
    batch = {
        "tokens": tokens,
        "targets": targets,
        "weights": weights,
        "segment_ids": segment_ids,
        "positions": positions,
    }
    if all(example.places is None for example in examples):
        return batch
    ids = np.zeros(shape, np.int32)
    for row, example in enumerate(examples):
        if example.places is None:
            raise ConfigError(f"pad_batch: example {row} has no places, which others have")
        ids[row, : len(example.places) - 1] = example.places[:-1]
    return {**batch, "position_ids": ids}


def pack_batch(examples: Sequence[Example], rows: int, length: int) -> dict[str, np.ndarray]:
    """Examples end to end in so many rows, each where it fits first, whole; one that fits nowhere is left out.

    For examples of very different lengths, of which `pad_batch` would make rows that are mostly padding. Segment ids
    and positions say where each begins, so models that are given them see what they would see of it alone.

    Returns:
      the batch (see the module's docstring), B = ``rows``, L = ``length``.

    Raises:
      ConfigError: an example needs more than ``length`` places, or has places of its own.
    """
    each = [pad_batch([example], max(len(example.tokens) - 1, 1)) for example in examples]
    names = ("tokens", "targets", "weights", "segment_ids", "positions")
    batch = {name: np.full((rows, length), PAD if name in names[:2] else 0, each[0][name].dtype) for name in names}
    used, count = np.zeros(rows, int), np.zeros(rows, int)
    for index, one in enumerate(each):
        size = one["tokens"].shape[1]
        if size > length:
            raise ConfigError(f"pack_batch: example {index} needs {size} places, got length {length}; try tokens_bound")
        if "position_ids" in one:
            raise ConfigError(f"pack_batch: example {index} has places of its own; use pad_batch")
        fits = np.flatnonzero(used + size <= length)
        if not fits.size:
            continue
        row, start = fits[0], used[fits[0]]
        count[row] += 1
        one["segment_ids"] = one["segment_ids"] * count[row]
        for name in names:
            batch[name][row, start : start + size] = one[name][0]
        used[row] += size
    return batch
