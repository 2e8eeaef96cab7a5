"""Merge lists of tokenizers in files, for asking what they were trained on (`jaxlm.tokenize.mixture_inference`).

    tokenizer.json    of the library tokenizers, model BPE: byte-level, or of characters with byte fallback
                      (SentencePiece, Kudo and Richardson 2018, where U+2581 is a space)
    merges.txt        two tokens a line, byte-level (GPT-2) or of characters
    any name.json     as `BpeTokenizer.save` writes it

Only the merges are wanted here, so lists are taken that `jaxlm.tokenize.bpe_files` refuses because it must encode as
the file says: with a normalizer, with tokens added as text. Those made from a SentencePiece vocabulary name a merge for
every way to put a token together. The tokens inside a token are merged as if its symbols stood alone, so a merge of a
and b happens in some text if and only if the earlier merges make just a and b of the symbols of ab; the others never
fire, say nothing of training, and are left out.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BYTES, FORMAT, read_json
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.bpe_files import FILE, MERGES, from_hf, merges_of_json, merges_of_text
from jaxlm.tokenize.byte_alphabet import alphabet
from jaxlm.tokenize.merges import Pair, apply
from jaxlm.tokenize.mixture_inference import symbols_of

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclasses.dataclass(frozen=True)
class MergeList:
    """A merge list in ids: bytes are 0..255, then ``characters``, then merge after merge.

    Attributes:
      merges: pairs of ids, in the order they were learned.
      characters: symbols of several bytes that words begin with; none if it is byte-level.
      redundant: numbers, in the file, of merges that never fire; they are not among ``merges``.
      split: rules of `jaxlm.tokenize.pretokens` that the file speaks of: what `from_hf` reads, ``space`` for lists of
        characters (SentencePiece's default), or None where it says something else.
    """

    merges: tuple[Pair, ...]
    characters: tuple[bytes, ...]
    redundant: tuple[int, ...]
    split: tuple[str, ...] | None


def read_merges(path: str | os.PathLike[str]) -> MergeList:
    """The merges of a file, or of a folder with one.

    Raises `ConfigError` if there are none, or something in their place is not a merge.
    """
    file = Path(path)
    if file.is_dir():
        there = [file / name for name in (FILE, MERGES) if (file / name).is_file()]
        require(there, f"{file}: no {FILE} or {MERGES} in this folder")
        file = there[0]
    if file.suffix != ".json":
        pairs = merges_of_text(file)
        require(not any(b.endswith("</w>") for _, b in pairs), f"{file}: merges with </w> are not supported")
        return _named(pairs, file)
    content = read_json(file)
    if content.get("format") == FORMAT:
        return _saved(file, content)
    model: Any = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    require(
        isinstance(model, dict) and isinstance(model.get("merges"), list), f"{file}: its model ({kind}) has no merges"
    )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        require(
            not model.get(key),
            f"{file}: {key} {model.get(key)!r} is not supported; symbols must be bytes or characters",
        )
    return _named(merges_of_json(model["merges"], str(file)), file)


def _saved(file: Path, content: dict[str, Any]) -> MergeList:
    """A `BpeTokenizer` of ours, in ids already."""
    require(content.get("name") == BpeTokenizer.name, f"{file}: a {content.get('name')!r} tokenizer has no merge list")
    saved = BpeTokenizer.load(file)
    return MergeList(saved.merges, (), (), saved.split)


def _named(pairs: Sequence[Sequence[str]], file: Path) -> MergeList:
    """Ids for merges of written tokens, without those that never fire."""
    require(pairs, f"{file}: there are no merges in it")
    broken = [token for pair in pairs for token in pair if re.search("[\ud800-\udfff]", token)]
    require(not broken, f"{file}: a merge is of {ascii(broken[:1])}, which is no text")
    byte_of = alphabet()
    letters = dict.fromkeys(c for pair in pairs for token in pair if not _BYTE.fullmatch(token) for c in token)
    byte_level = all(c in byte_of for c in letters)
    characters = () if byte_level else tuple(c.encode() for c in letters if c != SPACE and len(c.encode()) > 1)
    spell = (lambda token: bytes(byte_of[c] for c in token)) if byte_level else _spelled
    symbols = {symbol: BYTES + i for i, symbol in enumerate(characters)}
    ids = {bytes([byte]): byte for byte in range(BYTES)} | symbols
    ranks: dict[Pair, int] = {}
    redundant = []
    for number, (left, right) in enumerate(pairs):
        a, b = spell(left), spell(right)
        pair = ids.get(a, -1), ids.get(b, -1)
        if apply(symbols_of(a + b, symbols), ranks) != list(pair):
            redundant.append(number)
            continue
        ids[a + b] = BYTES + len(characters) + len(ranks)
        ranks[pair] = len(characters) + len(ranks)
    require(ranks, f"{file}: none of its {len(pairs)} merges can ever happen")
    return MergeList(tuple(ranks), characters, tuple(redundant), _split_of(file) if byte_level else ("space",))


def _split_of(file: Path) -> tuple[str, ...] | None:
    try:
        return from_hf(file).tokenizer.split
    except ConfigError:
        return None


def _spelled(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(SPACE, " ").encode()
