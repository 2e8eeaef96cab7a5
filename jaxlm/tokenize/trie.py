"""A trie of byte strings (Fredkin 1960, Trie Memory): which pieces begin at a place of a text, and the longest of them.

Pieces of whole characters may be looked up in bytes: UTF-8 is self-synchronising, so a match that begins at a character
ends at one.
"""

from __future__ import annotations

from collections.abc import Iterable


class Trie:
    """Pieces with their ids; of two equal pieces the later id holds. Empty pieces match nowhere."""

    def __init__(self, pieces: Iterable[tuple[bytes, int]] = ()) -> None:
        self._root: dict = {}  # byte -> node; the key -1 holds the id of the piece that ends here
        for piece, i in pieces:
            node = self._root
            for byte in piece:
                node = node.setdefault(byte, {})
            if piece:
                node[-1] = i

    def longest(self, data: bytes, start: int) -> tuple[int, int]:
        """(id, end) of the longest piece at ``start``; (-1, ``start``) if there is none."""
        node, found, at, size = self._root, (-1, start), start, len(data)
        while at < size and (node := node.get(data[at])) is not None:
            at += 1
            if -1 in node:
                found = node[-1], at
        return found

    def matches(self, data: bytes, start: int) -> list[tuple[int, int]]:
        """(id, end) of every piece at ``start``, the shortest first."""
        node, found, at, size = self._root, [], start, len(data)
        while at < size and (node := node.get(data[at])) is not None:
            at += 1
            if -1 in node:
                found.append((node[-1], at))
        return found

    def greedy(self, data: bytes) -> list[int]:
        """Ids by the longest match from left to right; a byte where nothing begins is its own id."""
        root, ids, at, size = self._root, [], 0, len(data)
        while at < size:
            node, found, end, ahead = root, data[at], at + 1, at
            while ahead < size and (node := node.get(data[ahead])) is not None:
                ahead += 1
                if -1 in node:
                    found, end = node[-1], ahead
            ids.append(found)
            at = end
        return ids
