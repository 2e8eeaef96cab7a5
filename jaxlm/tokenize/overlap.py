"""Which tokens of two vocabularies are the same, and how the tokens of one are spelt in the other.

Tokens are compared by their bytes, not by the strings that files hold: "Ġthe" of one tokenizer and "▁the" of another
are both " the". Special tokens have no bytes and are compared by what they are for.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.tokenize.base import BOS, EOS, PAD, Tokenizer

Ids = NDArray[np.int64]

GUARD = b"\n"  # tokens rarely reach across it


def overlap(source: Tokenizer, target: Tokenizer) -> Ids:
    """Of each target token the source token that means the same, -1 where there is none; int64 [T].

    By bytes for tokens of text; where a vocabulary spells the same bytes twice (a byte and its fallback), equally many
    are paired in order, else all stand for the one that encoding makes. Special tokens go by role (end, begin,
    padding), then by name. Ids that are no token in either are each other's, so a tokenizer overlaps itself wholly.
    """
    out = np.full(target.vocab_size, -1, np.int64)
    theirs = _by_bytes(source)
    for piece, ids in _by_bytes(target).items():
        if found := theirs.get(piece):
            out[ids] = found if len(found) == len(ids) else _canonical(source, piece, found)
    named = [name for name in target.special_ids if name not in (EOS, BOS, PAD)]
    for name in (EOS, BOS, PAD, *named):
        if name in target.special_ids and name in source.special_ids and out[target.special_ids[name]] < 0:
            out[target.special_ids[name]] = source.special_ids[name]
    gaps = [i for i in _gaps(target) if i < source.vocab_size]
    both = np.intersect1d(gaps, _gaps(source)).astype(np.int64)
    out[both] = both
    return out


def pieces_of(tokenizer: Tokenizer, tokens: Iterable[bytes]) -> list[list[int]]:
    """The ids by which a tokenizer spells each byte string, exactly those bytes; ``[]`` for the empty one.

    Raises `ConfigError` for a string that it cannot spell, which only a vocabulary without all bytes has.
    """
    table = tokenizer.token_bytes
    single = {piece: i for i, piece in reversed(list(enumerate(table))) if len(piece) == 1}
    out = []
    for piece in tokens:
        found = _spelt(tokenizer, table, piece)
        if found is None:
            lacking = [byte for byte in piece if bytes([byte]) not in single]
            if lacking:
                raise ConfigError(
                    f"the {tokenizer.name!r} tokenizer of the checkpoint cannot spell the new token {shown(piece)}: it "
                    f"has no byte 0x{lacking[0]:02X}; use an init that needs no pieces"
                )
            found = [single[bytes([byte])] for byte in piece]
        out.append(found)
    return out


def _spelt(tokenizer: Tokenizer, table: tuple[bytes, ...], piece: bytes) -> list[int] | None:
    """The encoding, alone or behind a guard (some tokenizers put a space before a text), if it is exact."""
    for before in (b"", GUARD):
        try:
            ids = tokenizer.encode(before + piece).tolist()
        except ConfigError:  # half a character, which the tokenizer does not take
            return None
        at = len(ids)
        left = len(piece)
        while left > 0 and at > 0:
            at -= 1
            left -= len(table[ids[at]])
        if left == 0 and b"".join(table[i] for i in ids[at:]) == piece and (before or at == 0):
            return ids[at:]
    return None


def check_complete(tokenizer: Tokenizer) -> None:
    """Raises `ConfigError` unless every byte is a token, so that every text has an encoding."""
    found = {piece for piece in tokenizer.token_bytes if len(piece) == 1}
    lacking = [byte for byte in range(256) if bytes([byte]) not in found]
    require(
        not lacking,
        f"the new {tokenizer.name!r} tokenizer has no token for {len(lacking)} of the 256 bytes (the first: "
        f"0x{lacking[0] if lacking else 0:02X}), so some text would be lost; give it all bytes, or byte fallback",
    )


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, list[int]]:
    out: dict[bytes, list[int]] = {}
    for i, piece in enumerate(tokenizer.token_bytes):
        if piece:
            out.setdefault(piece, []).append(i)
    return out


def _gaps(tokenizer: Tokenizer) -> list[int]:
    """Ids that are no token."""
    special = set(tokenizer.special_ids.values())
    return [i for i, piece in enumerate(tokenizer.token_bytes) if not piece and i not in special]


def _canonical(tokenizer: Tokenizer, piece: bytes, among: list[int]) -> int:
    found = _spelt(tokenizer, tokenizer.token_bytes, piece)
    return found[0] if found is not None and len(found) == 1 and found[0] in among else among[0]
