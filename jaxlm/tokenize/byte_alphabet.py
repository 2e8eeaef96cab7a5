"""How byte-level vocabularies print bytes (Radford et al. 2019, GPT-2): the one table between bytes and characters."""

from __future__ import annotations

import functools
from collections.abc import Mapping


@functools.cache
def alphabet() -> Mapping[str, int]:
    """character -> byte, in the order in which GPT-2 numbers bytes.

    Printable Latin-1 characters are their own byte, the other bytes follow from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def printed(piece: bytes) -> str:
    """A token's bytes in that alphabet: ``b" a"`` is ``"Ġa"``."""
    characters = _characters()
    return "".join([characters[byte] for byte in piece])


@functools.cache
def _characters() -> Mapping[int, str]:
    return {byte: character for character, byte in alphabet().items()}
