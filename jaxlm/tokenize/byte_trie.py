"""A vocabulary as a trie over bytes, in arrays: how likely is the next byte, when each token has a probability?

Node s stands for a string that some token begins with. Tokens are sorted by their bytes, so those that begin with the
string of s are a range, and the probability of s is the sum over that range. A range is made of few aligned blocks of
2^l tokens (a segment tree), whose sums are made by adding neighbours, level by level: every sum is of positive numbers
in a fixed order, so that small ones keep all their digits, which differences of a running sum would not.

Nodes are numbered by how many blocks they are made of, so that each kind is one gather.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NOWHERE = 0  # the node of strings that no token begins with


@dataclasses.dataclass(frozen=True)
class ByteTrie:
    """Of n tokens and N nodes.

    Attributes:
      order: int32 [n], the ids of the tokens, sorted by their bytes.
      root: the node of the empty string.
      longest: bytes of the longest token.
      row: int32 [N], each node's row in ``child``; 0 for nodes without children.
      child: int32 [rows, 256], the node after one more byte; `NOWHERE` if there is none.
      token: int32 [N], the token that is spelt so, -1 for none.
      blocks: int32 [n_w, w] for each w, the blocks that nodes are the sums of, in `sums`' numbering of blocks; the
        nodes of the first array come first.
    """

    order: NDArray[np.int32]
    root: int
    longest: int
    row: NDArray[np.int32]
    child: NDArray[np.int32]
    token: NDArray[np.int32]
    blocks: tuple[NDArray[np.int32], ...]

    @classmethod
    def of(cls, pieces: Sequence[bytes], counted: NDArray[np.bool_], spelt: NDArray[np.bool_]) -> ByteTrie:
        """The trie of tokens of V ids.

        Args:
          pieces: their bytes.
          counted: bool [V], whose probabilities count; those without bytes never do.
          spelt: bool [V], which tokens a string may be spelt with; no two with the same bytes.
        """
        order = sorted((i for i in np.flatnonzero(counted).tolist() if pieces[i]), key=lambda i: (pieces[i], i))
        parent, byte, first, after, token = [0, 0], [0, 0], [0, 0], [0, len(order)], [-1, -1]
        path: list[int] = [1]  # the nodes of the string before, from the root on
        before = b""
        for place, i in enumerate(order):
            piece = pieces[i]
            common = next((k for k, (a, b) in enumerate(zip(before, piece, strict=False)) if a != b), None)
            common = min(len(before), len(piece)) if common is None else common
            del path[common + 1 :]
            for symbol in piece[common:]:
                parent.append(path[-1])
                byte.append(symbol)
                first.append(place)
                after.append(place)
                token.append(-1)
                path.append(len(parent) - 1)
            for node in path[1:]:
                after[node] = place + 1
            if spelt[i]:
                token[path[-1]] = i
            before = piece
        blocks, renumbered = _blocks(np.array(first), np.array(after), len(order))
        new = np.argsort(renumbered)  # old node -> new
        inner = np.unique(np.array(parent[2:], np.int64))
        row = np.zeros(len(parent), np.int32)
        row[new[inner]] = np.arange(1, len(inner) + 1)
        child = np.full((len(inner) + 1, 256), NOWHERE, np.int32)
        child[row[new[parent[2:]]], byte[2:]] = new[2:]
        return cls(
            order=np.array(order, np.int32),
            root=int(new[1]),
            longest=max((len(pieces[i]) for i in order), default=0),
            row=row,
            child=child,
            token=np.array(token, np.int32)[renumbered],
            blocks=blocks,
        )

    def sums(self, probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
        """The probability [N] of each node, from those of the V ids; the plain form of what `decode` does in jit."""
        values = probabilities[self.order]
        levels = [np.pad(values, (0, padded(len(values)) - len(values)))]
        while len(levels[-1]) > 1:
            levels.append(levels[-1][::2] + levels[-1][1::2])
        cells = np.concatenate([*levels, np.zeros(1, values.dtype)])
        return np.concatenate([cells[block].sum(-1) for block in self.blocks])

    def walk(self, text: bytes) -> int:
        """The node of a string."""
        node = self.root
        for byte in text:
            node = int(self.child[self.row[node], byte])
        return node


def padded(size: int) -> int:
    """The number of leaves of a full binary tree for ``size`` values."""
    return 1 << max(size - 1, 0).bit_length()


def _blocks(
    first: NDArray[np.int64], after: NDArray[np.int64], size: int
) -> tuple[tuple[NDArray[np.int32], ...], NDArray[np.int64]]:
    """The aligned blocks of each range, by how many there are, and the nodes in the order of their new numbers.

    Blocks are numbered level by level: 2^k single values, 2^(k-1) pairs, and so on; last comes an empty one.
    """
    leaves = padded(size)
    nothing, low, high, offset, width = 2 * leaves - 1, first.copy(), after.copy(), 0, leaves
    found: list[NDArray[np.int64]] = []
    while width:
        left, right = (low < high) & (low % 2 == 1), (low < high) & (high % 2 == 1)
        found.append(np.where(left, offset + low, nothing))
        low = low + left
        right &= low < high
        high = high - right
        found.append(np.where(right, offset + high, nothing))
        low, high = low // 2, high // 2
        offset, width = offset + width, width // 2
    table = np.stack(found, 1)
    table = np.take_along_axis(table, np.argsort(table == nothing, axis=1, kind="stable"), 1)
    count = (table != nothing).sum(1)
    count[0] = 0  # NOWHERE stays the first
    kind = np.maximum(1, 1 << np.ceil(np.log2(np.maximum(count, 1))).astype(np.int64))
    order = np.lexsort((np.arange(len(count)), kind, count > 0))
    return tuple(table[order[kind[order] == w], :w].astype(np.int32) for w in np.unique(kind)), order
