"""The entropy of the next byte by counts: a small model of bytes, as a table that patches are made from.

The model interpolates the orders 0..k as Witten and Bell (1991) do,

    p_j(s | c) = (n(c s) + u(c) p_(j-1)(s | c')) / (n(c) + u(c)),    p_(-1) = 1 / V

with n the counts, u(c) how many different bytes came after the context c of j bytes, c' without its oldest byte. What a
patcher needs is only H = -sum_s p log p after each context, so that is what the table holds, hashed: one row of buckets
for each order, `NEVER` where no context fell. After a text's last k bytes the entropy is that of the longest context
that the table knows. Where two contexts meet in a bucket, the one seen more often has it; one never seen may meet
another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require

NEVER = -1.0
MULTIPLIER, MIXER = 0x01000193, 0x9E3779B1  # FNV's prime; 2^32 / golden ratio


def bucket(last: Sequence[Any], buckets: int) -> Any:
    """The bucket of the n bytes ``last``, the last one first, integers [...] each; 0 for no bytes. numpy or jax."""
    if not last:
        return np.int32(0)
    xp: Any = jnp if isinstance(last[0], jax.Array) else np
    h = xp.full(last[0].shape, 0x811C9DC5, np.uint32)
    for one in last:
        h = (h ^ (one.astype(np.uint32) + np.uint32(1))) * np.uint32(MULTIPLIER)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(MIXER)
    return ((h ^ (h >> np.uint32(13))) % np.uint32(buckets)).astype(np.int32)


def look_up(table: jax.Array, last: Sequence[jax.Array], positions: jax.Array) -> jax.Array:
    """Nats after each byte, float32 [B, L], by a table [k + 1, buckets] and the k last bytes, the last one first, each
    [B, L]; ``positions`` of the last one in its text say how many there are."""
    found = jnp.broadcast_to(jnp.maximum(table[0, 0], 0.0), positions.shape)
    for j in range(1, len(last) + 1):
        entropy = table[j, bucket(last[:j], table.shape[1])]
        found = jnp.where((positions >= j - 1) & (entropy >= 0), entropy, found)
    return found


def fit(texts: Iterable[Sequence[int]], order: int = 3, buckets: int = 65536, size: int = 256) -> NDArray[np.float32]:
    """The table [order + 1, buckets] of texts (``bytes``, or ints below ``size``). Time and memory grow with the number
    of different contexts, times ``size``. Raises `ConfigError` for no text, and symbols outside."""
    require(order >= 0 and buckets > 0, f"entropy table: expected order >= 0, buckets > 0, got {order} and {buckets}")
    require(size ** (order + 1) < 1 << 63, f"entropy table: {size}^{order + 1} contexts do not fit in 63 bits")
    arrays = [np.asarray(list(text), np.int64) for text in texts]
    require(sum(map(len, arrays)), "entropy table: expected texts with at least one byte")
    for number, array in enumerate(arrays):
        bad = array[(array < 0) | (array >= size)]
        require(not bad.size, f"entropy table: text {number}: symbol {bad[:1].tolist()} is outside 0..{size - 1}")
    table = np.full((order + 1, buckets), NEVER, np.float32)
    below, contexts_below = np.full((1, size), 1 / size), np.zeros(1, np.int64)
    for j in range(order + 1):
        pairs, counts = np.unique(np.concatenate([_pairs(a, j, size) for a in arrays]), return_counts=True)
        if not len(pairs):  # no text is that long
            break
        contexts, row = np.unique(pairs // size, return_inverse=True)
        n = np.zeros((len(contexts), size))
        n[row, pairs % size] = counts
        seen, different = n.sum(-1, keepdims=True), np.count_nonzero(n, axis=-1, keepdims=True)
        lower = np.searchsorted(contexts_below, contexts % size ** max(j - 1, 0)) if j else np.zeros(1, np.int64)
        p = (n + different * below[lower]) / (seen + different)
        entropy = -(p * np.log(p)).sum(-1)
        rising = np.argsort(seen[:, 0], kind="stable")  # the last to write a bucket is the one seen most
        digits = [contexts // size**i % size for i in range(j)]
        table[j, bucket([d[rising] for d in digits], buckets)] = entropy[rising] if j else entropy[0]
        below, contexts_below = p, contexts
    return table


def _pairs(symbols: NDArray[np.int64], order: int, size: int) -> NDArray[np.int64]:
    """Each context of ``order`` symbols and the symbol after it, as a number: its lowest digit is that symbol, the next
    one the context's last."""
    length = max(len(symbols) - order, 0)
    keys = np.zeros(length, np.int64)
    for i in range(order):
        keys += symbols[order - 1 - i : order - 1 - i + length] * size**i
    return keys * size + symbols[order : order + length]


def save(path: Path, table: NDArray[np.float32]) -> None:
    """Writes a table, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.save(file, table, allow_pickle=False)
    part.replace(path)


def load(path: Path) -> NDArray[np.float32]:
    """Reads what `save` wrote. Raises `ConfigError` for a file that is no table."""
    require(path.is_file(), f"entropy table: no file {path}")
    try:
        table = np.load(path, allow_pickle=False)
    except ValueError:
        table = None
    require(
        isinstance(table, np.ndarray) and table.ndim == 2 and table.dtype == np.float32 and np.isfinite(table).all(),
        f"entropy table: {path} is no table of `experiments.entropy_model`",
    )
    assert isinstance(table, np.ndarray)
    return table
